// What Nightsweep adds to the pages of Optuna dashboard, which has no read-only mode of its own: buttons that
// would only be refused are not shown, and what the answers of /api say under `nightsweep` stands on the page.
"use strict";
(() => {
  const style = document.createElement("style");
  style.textContent = `
    [aria-label="rename study"], [aria-label="delete study"], [aria-label="delete artifact"],
    [aria-label="skip trial"], button:has(> span > [data-testid="AddBoxIcon"]),
    button:has([data-testid="EditIcon"]), .nightsweep-hidden { display: none !important; }
    .nightsweep-badge { margin-left: auto; font-size: 14px; opacity: 0.9; }
    .nightsweep-repeat { margin-left: 0.6em; opacity: 0.75; font-size: 11px; white-space: nowrap; }`;
  document.head.append(style);

  // By study: `titles`, sentences that take the place of what stands beneath a title; `repeats`, by number.
  const known = new Map();
  const refused = new Set(["fail trial", "create"]);

  const fetched = window.fetch;
  window.fetch = async (...request) => {
    const answer = await fetched(...request);
    const found = /\/api\/studies\/(\d+)(?:\/param_importances)?(?:\?|$)/.exec(String(request[0]?.url ?? request[0]));
    if (found && answer.ok) {
      answer.clone().json().then(({ nightsweep }) => {
        const before = known.get(found[1]) ?? { titles: {}, repeats: {} };
        known.set(found[1], {
          titles: { ...before.titles, ...nightsweep?.titles },
          repeats: { ...before.repeats, ...nightsweep?.repeats },
        });
        mark();
      }).catch(() => {});
    }
    return answer;
  };

  const own = (element) => (element.firstChild?.nodeType === Node.TEXT_NODE ? element.firstChild.data : "");

  function mark() {
    const study = known.get(/\/studies\/(\d+)/.exec(location.pathname)?.[1]) ?? { titles: {}, repeats: {} };
    for (const button of document.querySelectorAll("button")) {
      if (refused.has(button.textContent.trim().toLowerCase())) button.classList.add("nightsweep-hidden");
    }
    for (const title of document.querySelectorAll("h6")) {
      const sentence = study.titles[own(title).replace(/ \(.*/, "").replace(/s$/, "")];
      let note = title.parentElement.querySelector(":scope > .nightsweep-note");
      if (!sentence) {
        note?.remove();
      } else {
        if (!note) {
          note = document.createElement("p");
          note.className = "nightsweep-note";
          title.after(note);
        }
        if (note.textContent !== sentence) note.textContent = sentence;
      }
      for (const below of title.parentElement.children) {
        if (below !== title && below !== note) below.classList.toggle("nightsweep-hidden", Boolean(sentence));
      }
    }
    for (const name of document.querySelectorAll(".MuiListItemText-primary, h4")) {
      const number = /^Trial (\d+)(?: \(|$)/.exec(own(name))?.[1];
      const words = number === undefined ? undefined : study.repeats[number];
      const there = name.querySelector(":scope > .nightsweep-repeat");
      if (!words) there?.remove();
      else if (there) there.textContent === words || (there.textContent = words);
      else {
        const span = document.createElement("span");
        span.className = "nightsweep-repeat";
        span.textContent = words;
        name.append(span);
      }
    }
    const bar = document.querySelector("header .MuiToolbar-root");
    if (bar && !bar.querySelector(".nightsweep-badge")) {
      const badge = document.createElement("span");
      badge.className = "nightsweep-badge";
      badge.textContent = "read-only";
      bar.append(badge);
    }
  }

  let due = false;
  new MutationObserver(() => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; mark(); });
  }).observe(document.documentElement, { childList: true, subtree: true, characterData: true });
})();
