// Narrows the catalogue's table by words, room, tag and outcome; the choice stands in the address and can be sent.
document.addEventListener("DOMContentLoaded", () => {
  const root = document.getElementById("narrowed");
  if (!root) return;
  const form = root.querySelector("form");
  const rows = [...root.querySelectorAll("tbody tr")];
  const names = ["words", "room", "tag", "outcome"];
  const asked = new URLSearchParams(location.search);
  for (const name of names) form.elements[name].value = asked.get(name) ?? "";

  const fits = (row, name, value) => {
    if (!value) return true;
    if (name === "words") return value.toLowerCase().split(/\s+/).every((word) => row.dataset.words.includes(word));
    return row.dataset[name].split("|").includes(value);
  };
  const narrow = () => {
    const chosen = names.map((name) => [name, form.elements[name].value.trim()]);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !chosen.every(([name, value]) => fits(row, name, value));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length}`;
    const query = new URLSearchParams(chosen.filter(([, value]) => value)).toString();
    try {
      history.replaceState(null, "", query ? `?${query}` : location.pathname);
    } catch {} // a page opened from disk may not change its address
  };
  form.addEventListener("input", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());
  narrow();
});
