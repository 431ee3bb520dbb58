// Tabs that follow the ARIA authoring practices: arrow keys, Home, End. A tab and its model have an
// address (`#write/alice-lstm`), so that Back, bookmarks and links work.

export function startTabs(list, onShow) {
  const tabs = [...list.querySelectorAll("[role=tab]")];

  function show(tab) {
    for (const each of tabs) {
      const chosen = each === tab;
      each.setAttribute("aria-selected", String(chosen));
      each.tabIndex = chosen ? 0 : -1;
      panelOf(each).hidden = !chosen;
    }
    const select = modelOf(tab);
    onShow(panelOf(tab).id, chosenIn(select, address().model));
  }

  function fromAddress() {
    show(tabs.find((tab) => tab.getAttribute("aria-controls") === address().tab) ?? tabs[0]);
  }

  function open(tab) {
    if (tab.getAttribute("aria-selected") !== "true") history.pushState(null, "", addressOf(tab));
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
  for (const tab of tabs) {
    modelOf(tab)?.addEventListener("change", () => history.replaceState(null, "", addressOf(tab)));
  }
  window.addEventListener("popstate", fromAddress);
  fromAddress();
}

function panelOf(tab) {
  return document.getElementById(tab.getAttribute("aria-controls"));
}

function modelOf(tab) {
  return document.getElementById(`${panelOf(tab).id}-model`);
}

function addressOf(tab) {
  // The slash keeps the browser from taking it for the panel's id and scrolling there.
  return `#${panelOf(tab).id}/${encodeURIComponent(modelOf(tab)?.value ?? "")}`;
}

function address() {
  const [tab, model = ""] = location.hash.slice(1).split("/");
  return { tab, model: decoded(model) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return ""; // not one of our addresses
  }
}

/** Select the model named by the address, if there is one; true if that changed the selection. */
function chosenIn(select, model) {
  if (!select || select.value === model || ![...select.options].some(({ value }) => value === model)) return false;
  select.value = model;
  return true;
}
