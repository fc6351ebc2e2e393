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
    if (window.innerWidth >= 1100 && !sidebar.classList.contains("open")) toggle.click();
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
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
};
