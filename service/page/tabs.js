// Tabs as the ARIA authoring practices have them: arrow keys, Home, End; the address remembers.

export function startTabs(list, onShow) {
  const tabs = [...list.querySelectorAll("[role=tab]")];

  function show(tab) {
    for (const each of tabs) {
      const chosen = each === tab;
      each.setAttribute("aria-selected", String(chosen));
      each.tabIndex = chosen ? 0 : -1;
      panelOf(each).hidden = !chosen;
    }
    onShow(panelOf(tab).id);
  }

  function fromAddress() {
    show(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);
  }

  function open(tab) {
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
    show(tab);
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) open(tab);
  });
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    tab.focus();
    open(tab);
  });
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
}

function panelOf(tab) {
  return document.getElementById(tab.getAttribute("aria-controls"));
}
