// What the reader chose, kept in the page's address behind the #, so that a link or a reload shows the same.
const CHOICES = ["q", "sort", "metric", "image"];

// Each choice from the address; where it names none, or one that `allowed` does not have, the default.
function readChoices(defaults, allowed) {
  const found = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(CHOICES.map((name) => {
    const value = found.get(name);
    return [name, value === null || (allowed[name] && !allowed[name].includes(value)) ? defaults[name] : value];
  }));
}

// add: as a new entry of the browser's history, from which Back returns.
function writeChoices(choices, defaults, add = false) {
  const set = new URLSearchParams(CHOICES.filter((name) => choices[name] !== defaults[name]).map((name) => [name, choices[name]]));
  const address = location.href.split("#")[0] + (set.size ? `#${set}` : "");
  if (add) history.pushState({ opened: true }, "", address);
  else history.replaceState(history.state, "", address);
}
