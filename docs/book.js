// Under each search hit, what its chapter promises: pages opened from a plain folder cannot be fetched for a summary.
const PROMISES = /*PROMISES*/{};
new MutationObserver((changes) => {
  for (const link of document.querySelectorAll("ul.search li > a:not([data-told])")) {
    link.dataset.told = "yes";
    const page = decodeURIComponent(link.getAttribute("href") || "").split("#")[0].split("?")[0].replace(/\.html$/, "");
    const promise = PROMISES[page.split("/").pop()];
    if (!promise || page.includes("exercises/")) continue;
    const words = document.createElement("p"); words.className = "promise"; words.textContent = promise.replace(/[*`$]/g, "");
    link.parentElement.append(words);
  }
}).observe(document.documentElement, { childList: true, subtree: true });
