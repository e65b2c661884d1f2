// What the pages need of a script: parts that follow the service, logs that stay at their end, a question before what cannot be undone.
"use strict";

const PAUSE = 2500; // milliseconds between two looks

function atEnd(box) {
  return box.scrollHeight - box.scrollTop - box.clientHeight < 40;
}

function toEnd(section) {
  const box = section.querySelector("ol.log");
  if (box) box.scrollTop = box.scrollHeight;
}

function isUsed(section) {
  const selection = document.getSelection();
  return section.contains(document.activeElement) && document.activeElement.matches("input, textarea, select") ||
    selection && !selection.isCollapsed && section.contains(selection.anchorNode);
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const section of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(section.id);
    if (!next || next.innerHTML === section.innerHTML || isUsed(section)) continue;
    const box = section.querySelector("ol.log");
    const follow = section.hasAttribute("data-tail") && box && atEnd(box);
    const place = box ? box.scrollTop : 0;
    const open = [...section.querySelectorAll("details[open][id]")].map((details) => details.id);
    section.innerHTML = next.innerHTML;
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (follow) toEnd(section);
    else if (box) section.querySelector("ol.log").scrollTop = place;
  }
}

async function follow() {
  if (document.visibilityState === "visible") {
    try {
      await refresh();
    } catch {
      // The service is away for the moment, or has ended; the page stays as it was.
    }
  }
  setTimeout(follow, PAUSE);
}

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, textarea, select")) return;
  const field = document.querySelector('[data-key="/"]');
  if (field) {
    event.preventDefault();
    field.focus();
  }
});

document.querySelectorAll("[data-tail]").forEach(toEnd);
if (document.querySelector("[data-live]")) setTimeout(follow, PAUSE);
