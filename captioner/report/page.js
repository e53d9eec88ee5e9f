// The page: header, tables, charts, gallery, and what was run.
const data = JSON.parse(document.getElementById("data").textContent);
const several = data.experiments.length > 1;
const at = (id) => document.getElementById(id);
const TITLES = data.titles.scores;
const SEARCHES = { beam: "beam size", diverse: "diverse beam size", sample: "samples" };
const digits = (name) => (data.percent.includes(name) ? 1 : 3);
const counted = (name, value) => (Number.isInteger(value) && value > 1 && !data.percent.includes(name) ? value.toLocaleString("en") : fixed(value, digits(name)));

function scrolling(label, table) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}

function table(head, rows) {
  const cells = (row) => row.map((cell, place) => (place ? make("td", {}, cell) : make("th", { scope: "row" }, cell)));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
}

// Which code, and of when.
function origin(commit) {
  if (!commit) return "commit unknown: evaluated outside a git repository";
  const files = commit.changed.length > 3 ? `${commit.changed.length} files` : commit.changed.join(", ");
  return `commit ${commit.hash.slice(0, 7)} of ${commit.date}${files ? ` with uncommitted changes in ${files}` : ""}`;
}

// When this file was written, from the disk: the page itself holds no time, so that the same run gives the same page. A server's answer may be the time of now.
function written() {
  const time = new Date(document.lastModified);
  if (location.protocol !== "file:" || Number.isNaN(time.getTime())) return [];
  const two = (value) => String(value).padStart(2, "0");
  return [`page written ${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${two(time.getHours())}:${two(time.getMinutes())}`];
}

function header() {
  const { signature } = data.experiments[0];
  const top = at("top");
  top.append(make("h1", {}, data.title));
  const searches = [...new Set(data.experiments.map((experiment) => `${SEARCHES[experiment.signature.search]} ${experiment.signature.beam}`))].join(" and ");
  top.append(make("p", { class: "lead" }, `${signature.images.toLocaleString("en")} images of the ${signature.split} split, `
    + `${signature.references.toLocaleString("en")} references, ${searches}`));
  const origins = [...new Set(data.experiments.map((experiment) => origin(experiment.commit)))];
  top.append(make("p", { class: "lead origin" }, [...(origins.length > 1 ? [] : origins), ...written()].join(" · ")));
  if (several) {
    const list = make("ul", { class: "experiments" });
    data.experiments.forEach((experiment, place) => {
      const name = make("span", {}, experiment.name);
      if (origins.length > 1) name.append(make("span", { class: "origin" }, ` ${origin(experiment.commit)}`));
      list.append(make("li", {}, chip(place), name));
    });
    top.append(list);
  }
  const jumps = make("nav", { class: "jumps", "aria-label": "Parts of this page" });
  for (const section of document.querySelectorAll("main > section")) {
    const jump = make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent);
    jump.addEventListener("click", (event) => {
      event.preventDefault(); // the address keeps the gallery's choices
      section.scrollIntoView();
      section.focus({ preventScroll: true });
    });
    jumps.append(jump);
  }
  top.append(jumps);
}

// One row a figure, one column an experiment; of a single one its interval and its value on validation in columns of their own.
function figures(label, titles, beside) {
  const all = data.experiments.map((experiment) => experiment.scores);
  const names = Object.keys(titles).filter((name) => all.some((each) => name in each));
  const spread = (name, score) => (!score || score.low === null ? "" : `${fixed(score.low, digits(name))} – ${fixed(score.high, digits(name))}`);
  const cell = (name, score) => {
    const found = make("span", {}, counted(name, score && score.value));
    if (several && spread(name, score)) found.append(make("span", { class: "interval" }, spread(name, score)));
    return found;
  };
  const head = several ? all.map((_, place) => letter(place)) : beside ? ["score", "95 % interval", "validation"] : ["captions"];
  const rows = names.map((name) => [titles[name], ...all.map((each) => cell(name, each[name])), ...(several || !beside ? [] : [spread(name, all[0][name]), fixed(all[0][name].val, digits(name))])]);
  return scrolling(label, table(["", ...head], rows));
}

function scores() {
  for (const text of new Set(data.experiments.flatMap((experiment) => experiment.warnings))) {
    const letters = data.experiments.flatMap((experiment, place) => (experiment.warnings.includes(text) ? [letter(place)] : []));
    const whose = letters.length < data.experiments.length ? `${letters.join(", ")}: ` : "";
    at("scores").append(make("p", { class: "notice", role: "note" }, whose + text));
  }
  const tables = make("div", { class: "tables" });
  at("scores").append(tables);
  tables.append(
    make("div", {}, figures("Scores", TITLES, true),
      make("p", { class: "hint" }, "Scores are in percent. Intervals are of a bootstrap over images. Cross entropy is in nats a word, lower is better.")),
    make("div", {}, figures("Diversity of captions", data.titles.diversity, false),
      make("p", { class: "hint" }, "In percent, but for words. Distinct-1 and -2 are the shares of different words and of different pairs of neighbours; novel captions are those that training does not have word for word.")));
  if (!data.pairs.length) return;
  const rows = data.pairs.flatMap((pair) => Object.entries(pair.differences).map(([name, found]) => [
    `${letter(pair.second)} − ${letter(pair.first)}, ${TITLES[name]}`, (found.value > 0 ? "+" : "") + fixed(found.value, 2), `${fixed(found.low, 2)} to ${fixed(found.high, 2)}`, fixed(found.p),
  ]));
  tables.append(make("div", {}, scrolling("Differences", table(["", "difference", "95 % interval", "p"], rows)),
    make("p", { class: "hint" }, "p is of a two-sided paired bootstrap over images.")));
}

function curves() {
  const lines = (make) => data.experiments.flatMap((experiment, place) => make(experiment, several ? String(place % 6) : "0", several ? `${letter(place)} ` : ""));
  const learned = (column, name, dash, tone) => (experiment, own, prefix) => {
    const history = experiment.history;
    return history && history[column] ? [{ name: `${prefix}${name}`, tone: several ? own : tone, dash, points: history[column].map((y, row) => [history.epoch[row], y]) }] : [];
  };
  const both = (train, val) => (...each) => [...learned(val, "validation", false, "0")(...each), ...learned(train, "training", true, "grey")(...each)];
  const sweep = (name) => (experiment, tone, prefix) => {
    const { sizes, values } = experiment.beam_sweep;
    return sizes.length > 1 && values[name] ? [{ name: `${prefix}${TITLES[name]}`, tone, points: sizes.map((size, row) => [size, values[name][row]]) }] : [];
  };
  const share = (counts) => counts.map((count, length) => [length, count / counts.reduce((sum, each) => sum + each, 0)]);
  const lengths = [
    ...lines((experiment, tone, prefix) => [{ name: `${prefix}generated`, tone, points: share(experiment.lengths.generated) }]),
    { name: "references", tone: "grey", dash: true, points: share(data.experiments[0].lengths.references) },
  ];
  const found = [
    chart({ title: "Cross entropy", xLabel: "epoch", series: lines(both("train_cross_entropy", "val_cross_entropy")) }),
    chart({ title: "Token accuracy on validation, percent", xLabel: "epoch", series: lines(learned("val_token_accuracy", "validation", false, "0")) }),
    ...["cider_d", "bleu_4"].map((name) => chart({ title: `${TITLES[name]} by beam size`, xLabel: "beam size", series: lines(sweep(name)) })),
    chart({ title: "Length of captions, share of each", xLabel: "words", series: lengths, steps: true, fromZero: true }),
  ];
  at("curves").append(make("div", { class: "charts" }, ...found.filter(Boolean)));
}

function flat(values, before = "") {
  return Object.entries(values).flatMap(([name, value]) => (value && typeof value === "object" && !Array.isArray(value)
    ? flat(value, `${before}${name}.`) : [[before + name, Array.isArray(value) ? value.join(", ") : String(value ?? "none")]]));
}

function run() {
  const merge = (pick) => {
    const each = data.experiments.map((experiment) => Object.fromEntries(flat(pick(experiment))));
    const names = [...new Set(each.flatMap(Object.keys))];
    const rows = names.map((name) => [name, ...each.map((values) => values[name] ?? "–")]);
    const differ = (row) => new Set(row.slice(1)).size > 1;
    return several ? [...rows.filter(differ), ...rows.filter((row) => !differ(row))] : rows;
  };
  const head = several ? ["", ...data.experiments.map((_, place) => letter(place))] : ["", "value"];
  const block = (title, pick, open) => {
    const details = make("details", open ? { open: "" } : {}, make("summary", {}, title), scrolling(title, table(head, merge(pick))));
    details.classList.add("facts");
    at("run").append(details);
  };
  block("Parameters", (experiment) => experiment.parameters, false);
  block("Model", (experiment) => experiment.model, false);
  block("Fingerprints", (experiment) => experiment.fingerprints, false);
  block("How it was scored", (experiment) => experiment.signature, false);
  if (data.experiments.some((experiment) => experiment.seconds)) block("Seconds", (experiment) => experiment.seconds || {}, false);
}

at("main").classList.toggle("stacked", data.experiments.length > 2); // more columns of scores than fit beside the images
header();
gallery(at("images"));
scores();
curves();
run();
at("main").hidden = false;
at("undrawn").remove();
