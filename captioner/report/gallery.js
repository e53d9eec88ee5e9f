// Cards of images with their captions; sorted and searched without being made again.
const letter = (place) => String.fromCharCode(65 + place);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// key: what a card is sorted by, the largest first; the lots' order decides between equal ones.
function orders(several) {
  const score = (card, metric) => card.captions.map((caption) => caption.scores[metric]);
  const found = [
    ["best", "best score first", (card, metric) => mean(score(card, metric))],
    ["worst", "worst score first", (card, metric) => -mean(score(card, metric))],
    ["random", "random", (card) => -card.place],
    ["longest", "longest caption first", (card) => Math.max(...card.captions.map((caption) => caption.words.length))],
    ["novel", "most novel first", (card) => mean(card.captions.map((caption) => caption.novelty))],
  ];
  if (several) found.unshift(["differ", "largest difference first", (card, metric) => Math.max(...score(card, metric)) - Math.min(...score(card, metric))]);
  return found;
}

function wordsOf(text) {
  return text.toLowerCase().split(/[^\p{L}\p{N}'-]+/u).filter(Boolean);
}

function makeCard(data, place, observer) {
  const image = data.images[place];
  const captions = data.experiments.map((experiment) => experiment.captions[place]);
  const several = captions.length > 1;
  const alt = captions.map((caption, number) => (several ? `${letter(number)}: ` : "") + (caption.words.join(" ") || "no words")).join("; ");
  const img = make("img", { alt, width: image.width, height: image.height, decoding: "async" });
  const shot = make("div", { class: "shot" }, img);
  shot.style.setProperty("--ratio", image.width / image.height);
  const element = make("li", { class: "card" }, make("div", { class: "frame" }, shot));
  const figures = [];
  captions.forEach((caption, number) => {
    const experiment = data.experiments[number];
    const figure = make("span", { class: "figure" });
    figures.push(figure);
    const head = make("div", { class: "caption-head" });
    if (several) head.append(make("abbr", { class: `chip tone-${number % 6}`, title: experiment.name }, letter(number)));
    head.append(figure);
    element.append(make("div", { class: "caption" }, captionLine(caption, experiment.grid, shot, several ? `Caption of ${letter(number)}` : "Generated caption"), head));
  });
  const references = image.references.map((text) => make("li", {}, text));
  if (references.length) element.append(make("ul", { class: "references", "aria-label": "Reference captions" }, references[0]));
  if (references.length > 1) {
    const more = make("ul", { class: "references", "aria-label": "More reference captions" }, ...references.slice(1));
    element.append(make("details", {}, make("summary", {}, `${references.length - 1} more references`), more));
  }
  element.append(make("p", { class: "file" }, image.name));
  const text = new Set([...captions.flatMap((caption) => caption.words), ...image.references.flatMap(wordsOf), ...wordsOf(image.name), image.name.toLowerCase()]);
  img.dataset.place = String(place);
  observer.observe(img);
  return { element, place, captions, figures, text: [...text].map((word) => word.toLowerCase()) };
}

function gallery(section, data) {
  const several = data.experiments.length > 1;
  const drawn = data.images.length < data.total ? `${data.images.length.toLocaleString("en")} of ${data.total.toLocaleString("en")} images, sampled at random` : `All ${data.total.toLocaleString("en")} images`;
  if (!data.images.length) {
    section.append(make("p", { class: "hint" }, "This report was made without images."));
    return;
  }
  const looks = data.experiments.some((experiment) => experiment.captions.some((caption) => caption.attention));
  const how = looks ? " Point at, tap or focus a word of a caption to see where the decoder looked for it; the arrow keys go from word to word." : " This decoder has no attention to show.";
  section.append(make("p", { class: "hint" }, `${drawn}.${how}`));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      entry.target.src = `data:image/jpeg;base64,${data.images[Number(entry.target.dataset.place)].jpeg}`;
      observer.unobserve(entry.target);
    }
  }, { rootMargin: "800px" });
  const cards = data.images.map((_, place) => makeCard(data, place, observer));
  const sorts = orders(several);
  const titles = data.titles.scores;
  const metrics = Object.keys(titles).filter((name) => cards[0].captions.every((caption) => name in caption.scores));
  const search = make("input", { type: "search", id: "search", placeholder: "a word or several", autocomplete: "off", spellcheck: "false" });
  const sort = make("select", { id: "sort" }, ...sorts.map(([value, title]) => make("option", { value }, title)));
  const metric = make("select", { id: "metric" }, ...metrics.map((name) => make("option", { value: name }, titles[name])));
  sort.value = several ? "differ" : "random";
  metric.value = metrics.includes("cider_d") ? "cider_d" : metrics[0];
  const field = (label, input) => make("div", { class: "field" }, make("label", { for: input.id }, label), input);
  const count = make("p", { id: "count", role: "status" });
  const list = make("ol", { class: "cards" });
  const update = () => {
    const key = sorts.find(([value]) => value === sort.value)[2];
    const keys = new Map(cards.map((card) => [card, key(card, metric.value)]));
    const sought = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const card of [...cards].sort((a, b) => keys.get(b) - keys.get(a) || a.place - b.place)) {
      const found = sought.every((word) => card.text.some((other) => other.startsWith(word)));
      card.element.hidden = !found;
      visible += found;
      card.figures.forEach((figure, number) => {
        const caption = card.captions[number];
        const parts = [`${titles[metric.value]} ${fixed(caption.scores[metric.value], 1)}`];
        if (sort.value === "novel") parts.push(`${Math.round(caption.novelty * 100)} % new phrases`);
        if (sort.value === "longest") parts.push(`${caption.words.length} words`);
        figure.textContent = parts.join(" · ");
      });
      for (const button of card.element.querySelectorAll(".word")) {
        button.classList.toggle("hit", sought.some((word) => button.textContent.toLowerCase().startsWith(word)));
      }
      list.append(card.element);
    }
    count.textContent = sought.length ? `${visible} of ${cards.length} images match` : "";
  };
  search.addEventListener("input", update);
  for (const input of [sort, metric]) input.addEventListener("change", update);
  section.append(make("div", { class: "controls" }, field("Search", search), field("Order", sort), field("Score", metric)), count, list);
  update();
}
