document.querySelectorAll(".sortable th button").forEach((button) => button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  const key = (row) => "text" in head.dataset ? row.cells[column].textContent : row.cells[column].dataset.value;
  const compare = (a, b) => "text" in head.dataset ? key(a).localeCompare(key(b))
    : !key(a) - !key(b) || (Number(key(a)) - Number(key(b))) * (down ? -1 : 1);
  const rows = [...body.rows].sort(compare);
  body.append(..."text" in head.dataset && down ? rows.reverse() : rows);
  head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}));
