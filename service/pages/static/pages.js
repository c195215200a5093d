// Draws the plots of a page in its colours, and keeps the page up to date: it listens to the service's events where
// there are any, else asks the REST API every few seconds, and replaces the parts of the page that have changed.
"use strict";
(() => {
  const EVERY = 4000, WHILE_LISTENING = 15000, AFTER_AN_ERROR = 15000;
  const PAPER_WIDTH = 670;
  const root = document.documentElement;
  const main = document.querySelector("main");
  root.classList.add("js");

  // Plots. A colour such as "--completed" is a property of the page's style.

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const fine = matchMedia("(pointer: fine)");

  function coloured(value, css) {
    if (typeof value === "string") return value.startsWith("--") ? css.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((each) => coloured(each, css));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, css)]));
  }

  function draw(figure, width) {
    const box = figure.querySelector(".plot");
    const plot = coloured(JSON.parse(figure.querySelector("script").textContent), getComputedStyle(root));
    plot.layout.uirevision = "kept"; // zoom and hidden traces, when the data changes
    plot.layout.dragmode = fine.matches ? "zoom" : false; // a finger scrolls the page
    plot.layout.autosize = width === undefined;
    if (width !== undefined) Object.assign(plot.layout, { width, height: box.clientHeight });
    const options = { responsive: width === undefined, displayModeBar: false, scrollZoom: false };
    return Plotly.react(box, plot.data, plot.layout, options);
  }

  function drawAll(width) {
    if (!window.Plotly) return;
    for (const figure of document.querySelectorAll("[data-figure]")) draw(figure, width);
  }

  dark.addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => {
    root.classList.add("on-paper");
    drawAll(PAPER_WIDTH);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("on-paper");
    drawAll();
  });

  // What is there to be copied.

  function offerCopies(within) {
    for (const box of within.querySelectorAll(".copy")) {
      if (!navigator.clipboard || box.querySelector("button")) continue;
      const button = document.createElement("button");
      const code = box.querySelector("pre");
      button.type = "button";
      button.textContent = "Copy";
      button.dataset.key = `copy-${code.id}`;
      button.setAttribute("aria-label", `Copy: ${code.getAttribute("aria-label")}`);
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      });
      box.append(button);
    }
  }

  // Changes.

  const parts = () => [...document.querySelectorAll("[data-part]")];
  const sources = new Map(parts().map((part) => [part.dataset.part, part.innerHTML]));
  const selected = (part) => {
    const selection = getSelection();
    return selection && !selection.isCollapsed && selection.containsNode(part, true);
  };

  function mark(element) {
    return element.id ? `#${CSS.escape(element.id)}` : element.dataset.key
      ? `[data-key="${CSS.escape(element.dataset.key)}"]` : element.tagName === "SUMMARY"
      ? `[data-key="${CSS.escape(element.parentElement.dataset.key ?? "")}"] > summary` : element.matches("a[href]")
      ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : null;
  }

  function replace(part, fresh) {
    const focused = part.contains(document.activeElement) ? mark(document.activeElement) : null;
    const open = [...part.querySelectorAll("details[open]")].map((each) => each.dataset.key);
    const scrolled = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    for (const figure of fresh.querySelectorAll("[data-figure]")) {
      // The drawing stays, so that what was zoomed into stays as well.
      const drawn = part.querySelector(`[data-figure="${CSS.escape(figure.dataset.figure)}"] .plot`);
      const empty = figure.querySelector(".plot");
      if (!drawn) continue;
      for (const name of ["aria-label", "style"]) drawn.setAttribute(name, empty.getAttribute(name));
      empty.replaceWith(drawn);
    }
    part.replaceChildren(...fresh.childNodes);
    for (const details of part.querySelectorAll("details")) details.open = open.includes(details.dataset.key);
    part.querySelectorAll(".scroll").forEach((each, place) => { each.scrollLeft = scrolled[place] ?? 0; });
    offerCopies(part);
    if (window.Plotly) for (const figure of part.querySelectorAll("[data-figure]")) draw(figure);
    if (focused) part.querySelector(focused)?.focus({ preventScroll: true });
  }

  function update(fresh) {
    const anchor = parts().find((part) => part.getBoundingClientRect().bottom > 0);
    const before = anchor?.getBoundingClientRect().top;
    let place = null;
    const wanted = [...fresh.querySelectorAll("main [data-part]")];
    const names = new Set(wanted.map((part) => part.dataset.part));
    for (const part of document.querySelectorAll("main [data-part]")) {
      if (!names.has(part.dataset.part)) part.remove();
    }
    for (const part of [...wanted, ...fresh.querySelectorAll("footer [data-part]")]) {
      const name = part.dataset.part, source = part.innerHTML;
      let there = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
      if (!there) {
        there = document.importNode(part, false);
        const first = main.querySelector("[data-part]");
        place ? place.after(there) : first ? first.before(there) : main.append(there);
        sources.delete(name);
      }
      place = there;
      if (sources.get(name) === source || selected(there)) continue;
      sources.set(name, source);
      replace(there, document.importNode(part, true));
    }
    document.title = fresh.title;
    main.dataset.watch = fresh.querySelector("main").dataset.watch ?? "";
    if (anchor?.isConnected) scrollBy({ top: anchor.getBoundingClientRect().top - before, behavior: "instant" });
  }

  async function ask(address, kind) {
    const answer = await fetch(address, { headers: { accept: kind }, cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status}`);
    return answer.text();
  }

  const live = document.getElementById("live");
  const say = (text) => { live.hidden = false; if (live.textContent !== text) live.textContent = text; };
  const watched = () => (main.dataset.watch ?? "").split(" ").filter(Boolean);
  let known = null, stream = null, timer = null, busy = false, again = false;

  async function look() {
    clearTimeout(timer);
    if (document.hidden || busy) { again = busy; return; }
    busy = true;
    let pause = stream?.readyState === 1 ? WHILE_LISTENING : EVERY;
    try {
      const now = (await Promise.all(watched().map((address) => ask(address, "application/json")))).join("\n");
      if (now !== known) {
        update(new DOMParser().parseFromString(await ask(location.pathname, "text/html"), "text/html"));
        known = now;
        say("This page keeps itself up to date.");
      }
    } catch (error) {
      pause = AFTER_AN_ERROR;
      say("The server does not answer at the moment, so this page may be out of date. It tries again by itself.");
    }
    busy = false;
    if (!watched().length) return end();
    timer = setTimeout(look, again ? 1000 : pause);
    again = false;
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(look, 500);
  }

  function listen() {
    if (!main.dataset.events || !window.EventSource || stream) return;
    stream = new EventSource(main.dataset.events);
    stream.onmessage = soon;
    // Where the server has no such address, or has ended the stream for good, the questions go on.
    stream.onerror = () => { if (stream?.readyState === 2) stream = null; };
  }

  function end() {
    stream?.close();
    stream = null;
    say("Nothing of this changes any more.");
  }

  offerCopies(document);
  drawAll();
  if (watched().length) {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { stream?.close(); stream = null; clearTimeout(timer); } else if (watched().length) { listen(); look(); }
    });
    listen();
    soon();
  }
})();
