// The gallery: its order, its search, and how much of it is on the page.
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const [FIRST, MORE] = [12, 48]; // images at first, and with each "Show more"

// key: what an image is sorted by, the largest first; the sample's order decides between equal ones.
function orders(several) {
  const score = (item, metric) => item.captions.map((caption) => caption.scores[metric]);
  const found = [
    ["random", "random order", (item) => -item.place],
    ["best", "best first", (item, metric) => mean(score(item, metric))],
    ["worst", "worst first", (item, metric) => -mean(score(item, metric))],
    ["longest", "longest first", (item) => Math.max(...item.captions.map((caption) => caption.words.length))],
    ["novel", "most novel first", (item) => mean(item.captions.map((caption) => caption.novelty))],
  ];
  if (several) found.unshift(["differ", "largest difference", (item, metric) => Math.max(...score(item, metric)) - Math.min(...score(item, metric))]);
  return found;
}

function wordsOf(text) {
  return text.toLowerCase().split(/[^\p{L}\p{M}\p{N}'-]+/u).filter(Boolean);
}

// Where no space says where a word begins, it may begin anywhere.
const UNSPACED = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}]/u;
const matches = (text, sought) => text.startsWith(sought) || (UNSPACED.test(sought) && text.includes(sought));

function searched(item) {
  item.text = item.text || [...new Set([...item.captions.flatMap((caption) => [...caption.words, textOf(caption)].map((word) => word.toLowerCase())),
    ...item.image.references.flatMap(wordsOf), ...wordsOf(item.image.name), item.image.name.toLowerCase()])];
  return item.text;
}

function introduction(sample, total) {
  const few = total.toLocaleString("en");
  if (!sample) return `This report was made without images (evaluate.report_images is 0). The text of all ${few} can be searched.`;
  return sample < total ? `${sample.toLocaleString("en")} of ${few} images, sampled at random. Search covers the text of all.` : `All ${few} images.`;
}

function gallery(section) {
  const several = data.experiments.length > 1;
  const items = data.images.map((image, place) => ({ image, place, captions: data.experiments.map((experiment) => experiment.captions[place]) }));
  if (!items.length) {
    section.append(make("p", { class: "hint" }, "No image was scored."));
    return;
  }
  const sample = items.filter((item) => item.image.webp);
  const sorts = orders(several);
  const titles = data.titles.scores;
  const metrics = Object.keys(titles).filter((name) => items[0].captions.every((caption) => name in caption.scores));
  const defaults = { q: "", sort: sorts[0][0], metric: metrics.includes("cider_d") ? "cider_d" : metrics[0], image: "" };
  const allowed = { sort: sorts.map(([value]) => value), metric: metrics };
  let choices = defaults;
  let [found, limit] = [[], FIRST];

  const search = make("input", { type: "search", id: "search", placeholder: "Search captions and references", autocomplete: "off", spellcheck: "false" });
  const sort = make("select", { id: "sort" }, ...sorts.map(([value, title]) => make("option", { value }, title)));
  const metric = make("select", { id: "metric" }, ...metrics.map((name) => make("option", { value: name }, titles[name])));
  const field = (label, input) => make("div", { class: "field" }, make("label", { for: input.id }, label), input);
  const count = make("p", { id: "count", role: "status" });
  const list = make("ol", { class: "cards" });
  const more = make("button", { type: "button", class: "more" });
  const cards = new Map();
  const cardOf = (item) => {
    if (!cards.has(item)) cards.set(item, makeCard(item, () => open(item)));
    return cards.get(item);
  };

  const arrange = () => {
    const key = sorts.find(([value]) => value === choices.sort)[2];
    const sought = choices.q.toLowerCase().split(/\s+/).filter(Boolean);
    found = sought.length ? items.filter((item) => sought.every((word) => searched(item).some((other) => matches(other, word)))) : sample.length ? [...sample] : [...items];
    const keys = new Map(found.map((item) => [item, key(item, choices.metric)]));
    found.sort((a, b) => keys.get(b) - keys.get(a) || a.place - b.place);
    const sampled = found.filter((item) => item.image.webp).length;
    count.textContent = sought.length ? `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} images match`
      + (sampled < found.length ? `, ${sampled.toLocaleString("en")} of them in the sample` : "") : "";
  };
  const draw = () => {
    const sought = choices.q.toLowerCase().split(/\s+/).filter(Boolean);
    list.replaceChildren(...found.slice(0, limit).map((item) => {
      const { element, figures } = cardOf(item);
      figures.forEach((figure, number) => {
        const caption = item.captions[number];
        const parts = [`${titles[choices.metric]} ${fixed(caption.scores[choices.metric], 1)}`];
        if (choices.sort === "novel") parts.push(`${Math.round(caption.novelty * 100)} % new phrases`);
        if (choices.sort === "longest") parts.push(`${caption.words.length} words`);
        figure.textContent = parts.join(" · ");
      });
      for (const word of element.querySelectorAll(".word")) {
        word.classList.toggle("hit", sought.some((start) => word.textContent.toLowerCase().startsWith(start)));
      }
      return element;
    }));
    const left = found.length - limit;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(MORE, left)} more of ${found.length.toLocaleString("en")}`;
  };
  const choose = (changes, add) => {
    choices = { ...choices, ...changes };
    writeChoices(choices, defaults, add);
  };

  const where = (item) => (found.includes(item) ? `${found.indexOf(item) + 1} of ${found.length.toLocaleString("en")}` : "");
  const viewer = makeViewer({
    step: (item, by) => found[found.includes(item) ? found.indexOf(item) + by : 0] || null,
    moved: (item) => {
      choose({ image: String(item.image.id) });
      viewer.show(item, where(item));
    },
    closed: () => {
      if (!choices.image) return;
      const added = history.state && history.state.opened; // an entry for the opened image, from which Back leads here
      if (added) choices = { ...choices, image: "" };
      if (added) history.back();
      else choose({ image: "" });
    },
  });
  const open = (item) => {
    choose({ image: String(item.image.id) }, true);
    viewer.show(item, where(item));
  };
  // The page as the address says. The list is drawn again only where it changes, for that takes the focus from it.
  const follow = () => {
    const before = choices;
    choices = readChoices(defaults, allowed);
    if (before === defaults || ["q", "sort", "metric"].some((name) => choices[name] !== before[name])) {
      [search.value, sort.value, metric.value] = [choices.q, choices.sort, choices.metric];
      arrange();
      draw();
    }
    const item = choices.image && items.find((each) => String(each.image.id) === choices.image);
    if (item) viewer.show(item, where(item));
    else viewer.hide();
  };
  const changed = (changes) => {
    choose(changes);
    limit = FIRST;
    arrange();
    draw();
  };
  search.addEventListener("input", () => changed({ q: search.value }));
  sort.addEventListener("change", () => changed({ sort: sort.value }));
  metric.addEventListener("change", () => changed({ metric: metric.value }));
  more.addEventListener("click", () => {
    const first = found[limit];
    limit += MORE;
    draw();
    cardOf(first).frame.focus({ preventScroll: true });
  });
  addEventListener("hashchange", follow);

  const looks = data.experiments.some((experiment) => experiment.captions.some((caption) => caption.attention));
  const how = looks ? " Point at, tap or focus a word to see where the decoder looked for it." : " This decoder has no attention to show.";
  section.append(make("div", { class: "controls" }, field("Search", search), field("Order", sort), field("Score", metric)), count, list, more);
  const notes = make("div", { class: "notes" }, make("p", { class: "hint" }, introduction(sample.length, items.length) + (sample.length ? how : "")));
  if (looks) notes.append(heatLegend());
  section.insertBefore(notes, section.querySelector(".controls"));
  follow();
}
