// An image enlarged, with all its scores and references.
// step: the item that lies so many places further in the gallery's order, or null; closed: called when the reader closes it.
function makeViewer({ step, moved, closed }) {
  const place = make("span", { class: "place" });
  const button = (text, label, act) => {
    const element = make("button", { type: "button", "aria-label": label }, text);
    element.addEventListener("click", act);
    return element;
  };
  const close = button("Close", "Close", () => dialog.close());
  const [back, next] = [button("‹", "Previous image", () => go(-1)), button("›", "Next image", () => go(1))];
  const body = make("div", { class: "viewer-body" });
  const dialog = make("dialog", { class: "viewer", "aria-label": "Enlarged image" }, make("div", { class: "viewer-bar" }, place, back, next, close), body);
  document.body.append(dialog);
  let shown = null;
  const go = (by) => {
    const item = step(shown, by);
    if (item) moved(item);
  };
  dialog.addEventListener("close", () => closed());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the dialog's content
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.classList.contains("word") || !(event.key in { ArrowLeft: 1, ArrowRight: 1 })) return; // there the arrows go through the words
    event.preventDefault();
    go(event.key === "ArrowLeft" ? -1 : 1);
  });

  const scoreTable = (item) => {
    const titles = data.titles.scores;
    const names = Object.keys(titles).filter((name) => item.captions.some((caption) => name in caption.scores));
    const rows = names.map((name) => [titles[name], ...item.captions.map((caption) => fixed(caption.scores[name], 1))]);
    rows.push(["New phrases", ...item.captions.map((caption) => `${Math.round(caption.novelty * 100)} %`)]);
    rows.push(["Log-probability", ...item.captions.map((caption) => fixed(caption.log_probability, 2))]);
    const head = item.captions.length > 1 ? item.captions.map((_, number) => letter(number)) : ["this image"];
    return scrolling("Scores of this image", table(["", ...head], rows));
  };
  return {
    // where: the item's place in the gallery, in words
    show(item, where) {
      shown = item;
      place.textContent = where;
      back.disabled = !step(item, -1);
      next.disabled = !step(item, 1);
      const shot = imageOf(item);
      const panel = make("div", { class: "viewer-image" }, shot || make("p", { class: "hint" }, "This image is outside the sample, so the page has its text only."));
      if (item.captions.some((caption) => caption.attention)) panel.append(heatLegend());
      const text = make("div", { class: "viewer-text" }, ...captionBlocks(item, shot, body), make("h3", {}, "References"), referenceList(item.image.references, "Reference captions"),
        make("h3", {}, "Scores"), scoreTable(item), make("p", { class: "file" }, `${item.image.name} (id ${item.image.id})`));
      body.replaceChildren(panel, text);
      body.scrollTop = 0;
      if (!dialog.open) {
        dialog.showModal();
        close.focus();
      }
    },
    hide() {
      if (dialog.open) dialog.close();
    },
  };
}
