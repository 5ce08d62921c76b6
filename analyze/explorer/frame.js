"use strict";
// What report and lake serve share around the explorer: the theme, and elements made in one line.
const frame = (() => {
  const root = document.documentElement;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null) element.setAttribute(name, value);
    }
    for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
    return element;
  };

  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameToggle = () => { toggle.textContent = isDark() ? "Light theme" : "Dark theme"; };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* storage is off */ }
    nameToggle();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameToggle);
  nameToggle();

  // What can be scrolled is reached by the keyboard, and fades at the sides where there is more of it.
  const reach = (element) => {
    const more = element.scrollWidth - element.clientWidth;
    const below = element.scrollHeight - element.clientHeight;
    if (more > 1 || below > 1) element.tabIndex = 0; else element.removeAttribute("tabindex");
    element.classList.toggle("more-before", more > 1 && element.scrollLeft > 1);
    element.classList.toggle("more-after", more > 1 && element.scrollLeft < more - 1);
    element.classList.toggle("more-above", below > 1 && element.scrollTop > 1);
    element.classList.toggle("more-below", below > 1 && element.scrollTop < below - 1);
  };
  const sizes = new ResizeObserver((entries) => { for (const entry of entries) reach(entry.target); });
  const watchScroll = (where) => where.querySelectorAll(".scroll, .panel.wide").forEach((element) => {
    reach(element);
    sizes.observe(element);
    element.addEventListener("scroll", () => reach(element), { passive: true });
  });
  watchScroll(document);

  return { make, watchScroll };
})();
