"""The pages for logging in and out: plain HTML without a script, readable on a phone and in the dark."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
}

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #ffffff; --line: #6b6b6b; --strong: #0b5394;
        --on-strong: #ffffff; --wrong: #a40000; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececec; --back: #161616; --line: #9a9a9a; --strong: #8ab8ff; --on-strong: #10151c;
          --wrong: #ff9a9a; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
       background: var(--back); }
main { max-width: 26rem; margin: 10vh auto 0; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
label { display: block; font-weight: 600; }
input[type=password] { width: 100%; padding: .6rem; font: inherit; color: inherit; background: transparent;
       border: 1px solid var(--line); border-radius: .3rem; }
button, .button { display: inline-block; margin-top: 1rem; padding: .6rem 1.2rem; font: inherit;
       font-weight: 600; color: var(--on-strong); background: var(--strong); border: 0; border-radius: .3rem;
       text-decoration: none; cursor: pointer; min-height: 2.75rem; }
a { color: var(--strong); }
:focus-visible { outline: 3px solid var(--strong); outline-offset: 2px; }
.wrong { color: var(--wrong); font-weight: 600; }
.hint { margin: .3rem 0 0; }
"""


def login_page(
    *, next_path: str, form_token: str, wrong: str = "", openid_path: str | None = None, reload: bool = False
) -> str:
    """The form that takes a key.

    Args:
        next_path: where to go afterwards.
        form_token: proves that the form is of this page.
        wrong: why the last try failed.
        openid_path: the way to the identity provider; None: there is none.
        reload: have the browser ask again by itself, once: what another site's link led to comes without the
            cookie, and may be logged in all the same.
    """
    message = f'<p class="wrong" role="alert">{escape(wrong)}</p>' if wrong else ""
    described = ' aria-invalid="true"' if wrong else ""
    provider = (
        f'<p><a class="button" href="{escape(openid_path)}">Log in with your organisation</a></p>'
        if openid_path
        else ""
    )
    body = f"""<h1>Log in to Nightsweep</h1>
{message}
<form method="post" action="/login">
<input type="hidden" name="csrf_token" value="{escape(form_token)}">
<input type="hidden" name="next" value="{escape(next_path)}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 aria-describedby="hint"{described}>
<p class="hint" id="hint">It begins with nsk_, unless it is the server's own key.</p>
<button type="submit">Log in</button>
</form>
{provider}"""
    return _page("Log in", body, head='<meta http-equiv="refresh" content="0">' if reload else "")


def logout_page(*, owner: str, role: str, form_token: str | None) -> str:
    """Who is logged in, and the form that ends that."""
    form = (
        f"""<form method="post" action="/logout">
<input type="hidden" name="csrf_token" value="{escape(form_token)}">
<button type="submit">Log out</button>
</form>"""
        if form_token is not None
        else "<p>This browser has no session: there is nothing to end.</p>"
    )
    body = f"""<h1>Log out of Nightsweep</h1>
<p>You are <strong>{escape(owner)}</strong> here, with the role {escape(role)}.</p>
{form}
<p><a href="/dashboard">Back to the dashboard</a></p>"""
    return _page("Log out", body)


def onward_page(path: str) -> str:
    """Leads on by itself. A redirect would not do: the browser comes from another site, and would leave out
    a cookie that is for requests from this one alone."""
    body = f'<h1>You are logged in</h1><p><a href="{escape(path)}">Go on</a></p>'
    return _page("Logged in", body, head=f'<meta http-equiv="refresh" content="0;url={escape(path)}">')


def message_page(title: str, message: str) -> str:
    """A sentence, and the way back to the login page."""
    body = f'<h1>{escape(title)}</h1><p role="alert">{escape(message)}</p><p><a href="/login">Log in</a></p>'
    return _page(title, body)


def respond(page: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(page, status, headers=HEADERS)


def _page(title: str, body: str, head: str = "") -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} - Nightsweep</title>
{head}
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
