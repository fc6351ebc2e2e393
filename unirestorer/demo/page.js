// What the page needs beyond Gradio: the sidebar's state, names for what Gradio leaves nameless.
window.unirestorerReady = () => {
  const sidebar = document.querySelector("#sidebar");
  const toggle = sidebar?.querySelector(".toggle-button");
  if (toggle && !toggle.dataset.ready) {
    toggle.dataset.ready = "yes";
    toggle.setAttribute("aria-label", "Instruction panel");
    const tell = () => toggle.setAttribute("aria-expanded", String(sidebar.classList.contains("open")));
    new MutationObserver(tell).observe(sidebar, { attributes: true, attributeFilter: ["class"] });
    tell();
    if (window.innerWidth >= 1100 && !hidden.includes("sidebar") && !sidebar.classList.contains("open")) toggle.click();
  }
  document.querySelector("#verdict")?.setAttribute("aria-live", "polite");
  const names = { "auto-slider": "restored in auto mode", "choice-slider": "restored as you chose" };
  const name = () => {
    for (const [id, words] of Object.entries(names)) {
      const pictures = document.querySelectorAll(`#${id} img`);
      pictures.forEach((picture) => {
        const alt = pictures[0] === picture ? "Your photo, " + words : "Your photo, as given";
        if (picture.alt !== alt) picture.alt = alt;
      });
    }
    document.querySelectorAll("#photo input[type=file]").forEach((input) => {
      if (!input.getAttribute("aria-label")) input.setAttribute("aria-label", "Choose a photo");
    });
  };
  // The photo's marks on the map are its last two traces. They are moved alone: drawing the thousands around
  // them would take longer than the answer. A map that was drawn anew (coloured otherwise) has not got them yet.
  const star = () => {
    const map = document.querySelector("#map .js-plotly-plot");
    if (!map?.calcdata || !window.Plotly) return;
    const place = document.querySelector("#what [data-star]")?.dataset.star ?? "";
    if ((map.data.star ?? "") === place) return;
    map.data.star = place;
    const nowhere = { x: [null], y: [null] };
    const traces = [map.data.length - 2, map.data.length - 1];
    const still = { mode: "immediate", frame: { duration: 0, redraw: false }, transition: { duration: 0 } };
    window.Plotly.animate(map, { data: place ? JSON.parse(place) : [nowhere, nowhere], traces }, still);
  };
  const chosen = () => document.querySelector("#tabs [role=tab][aria-selected=true]")?.dataset.tabId;
  let lesson = document.querySelector("[data-lesson]")?.dataset.lesson;
  let tab = chosen();
  const follow = () => {
    const open = chosen();
    if (open && open !== tab) window.unirestorerLink("tab", open === "restore" ? "" : open);
    tab = open ?? tab;
    const now = document.querySelector("[data-lesson]")?.dataset.lesson;
    if (now && now !== lesson) window.unirestorerLink("lesson", now === "1" ? "" : now);
    lesson = now ?? lesson;
  };
  const selected = { attributes: true, attributeFilter: ["aria-selected"] };
  new MutationObserver(follow).observe(document.body, { childList: true, subtree: true, ...selected });
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  new MutationObserver(star).observe(document.body, { childList: true, subtree: true });
  name();
};

// The state in the address: what differs from how the page starts. Photos never get there.
window.unirestorerLink = (name, value) => {
  const query = new URLSearchParams(window.location.search);
  if (value === "" || value === null || value === undefined) query.delete(name);
  else query.set(name, value);
  const text = query.toString();
  window.history.replaceState(window.history.state, "", window.location.pathname + (text ? `?${text}` : ""));
};
const hidden = (new URLSearchParams(window.location.search).get("hide") ?? "").split(".");
const rules = ["lab", "compare", "batch", "lessons", "card"].filter((name) => hidden.includes(name))
  .map((name) => `#tabs [data-tab-id=${name}] { display: none !important; }`);
if (hidden.includes("sidebar")) {
  rules.push("#sidebar { display: none !important; } .sidebar-parent { padding-left: 0 !important; }");
}
if (rules.length) {
  const style = document.createElement("style");
  style.textContent = rules.join("\n");
  document.head.append(style);
}
const goTo = (element) => {
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  element?.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
};
// On a phone the results lie below the photo: go there, where the answer is waited for.
const showResults = () => {
  const results = document.querySelector("#results");
  if (results?.getBoundingClientRect().top > window.innerHeight / 2) goTo(results);
};
document.addEventListener("click", (event) => {
  const example = event.target.closest("[data-example]");
  if (example) window.unirestorerLink("example", example.dataset.example);
  if (example) showResults();
  if (event.target.closest("#lesson-show")) setTimeout(showResults, 500); // once its tab is open
  const there = event.target.closest("[data-go]");
  if (there) goTo(document.getElementById(there.dataset.go));
  if (event.target.closest("#reset")) window.unirestorerLink("example", "");
});
// Another model's page takes the state along, apart from the expert, whose names are its own. A photo of the
// visitor's own waits in this browser's storage until that page is there.
const CARRIED = "carried-photo";
const openStore = () => window.caches?.open("unirestorer");
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-model]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const query = new URLSearchParams(window.location.search);
  query.delete("expert");
  const picture = document.querySelector("#photo img");
  if (picture && !query.has("example")) {
    try {
      const photo = await fetch(picture.src);
      if (photo.ok) await (await openStore()).put(CARRIED, photo);
    } catch {} // no storage in this browser: the photo has to be given again
  }
  const root = (window.gradio_config?.root ?? "").replace(/\/$/, "");
  const text = query.toString();
  window.location.assign(`${root}/${link.dataset.model}${text ? `?${text}` : ""}`);
});
window.unirestorerCarried = async () => {
  const store = await openStore();
  const kept = await store?.match(CARRIED);
  if (!kept) return;
  await store.delete(CARRIED);
  let input;
  while (!(input = document.querySelector("#photo input[type=file]"))) await new Promise((r) => setTimeout(r, 50));
  const photo = await kept.blob();
  const files = new DataTransfer();
  files.items.add(new File([photo], `photo.${photo.type.split("/")[1] ?? "png"}`, { type: photo.type }));
  input.files = files.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
};
document.addEventListener("change", (event) => {
  if (!event.target.closest("#photo input[type=file]")) return;
  window.unirestorerLink("example", "");
  showResults();
});
