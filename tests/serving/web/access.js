// What is wrong with the page as it is shown: names, ids, headings, contrast, width. Returns sentences.
(() => {
  const found = [];
  const shown = (element) => element.checkVisibility({ opacityProperty: false, visibilityProperty: true });
  const named = (element) =>
    element.ariaLabel || element.textContent.trim() || element.getAttribute("title") ||
    [...(element.labels ?? [])].some((label) => label.textContent.trim()) ||
    (element.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => document.getElementById(id)?.textContent);

  for (const element of document.querySelectorAll("input, textarea, select, button, a, [role=img], [role=group], video, section, form")) {
    if (shown(element) && !named(element)) found.push(`${element.tagName.toLowerCase()} has no name: ${element.outerHTML.slice(0, 80)}`);
  }
  for (const attribute of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of element.getAttribute(attribute).split(" ")) if (!document.getElementById(id)) found.push(`${attribute} ${id}: leads nowhere`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  ids.filter((id, index) => ids.indexOf(id) !== index).forEach((id) => found.push(`id ${id} is there twice`));
  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) found.push(`h${own} comes behind h${level}`);
    level = own;
  }

  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const pixel = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const [r, g, b, alpha] = pixel(getComputedStyle(each).backgroundColor);
      if (alpha === 255) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !shown(element) || element.closest(".only-heard, template, noscript, script")) continue;
    if (element.closest(":disabled")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [luminance(pixel(style.color).slice(0, 3)), luminance(behind(element))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)} of "${texts.currentNode.data.trim().slice(0, 40)}"`);
    if (parseFloat(style.fontSize) < 12) found.push(`${style.fontSize} is too small: "${texts.currentNode.data.trim()}"`);
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(`the page is ${document.documentElement.scrollWidth} px wide, wider than ${innerWidth}`);
  return found;
})()
