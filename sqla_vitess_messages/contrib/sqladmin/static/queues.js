"use strict";
(function () {
  // Show what the last action did: the server tells it in a cookie.
  const notice = document.getElementById("queue-notice");
  const told = document.cookie.match(/(?:^|; )queue_notice=([^;]*)/);
  if (notice && told) {
    notice.textContent = decodeURIComponent(told[1]);
    notice.hidden = false;
    document.cookie = "queue_notice=; Max-Age=0; SameSite=Strict; Path=" + notice.dataset.path;
  }

  function localTimes() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      time.title = new Date(time.dateTime).toLocaleString();
    }
  }
  localTimes();

  // Select the messages of the page.
  const all = document.getElementById("queue-select-all");
  if (all) {
    all.addEventListener("change", function () {
      for (const box of document.querySelectorAll(".queue-select")) box.checked = all.checked;
    });
  }

  // Replace the cards, unless the user is about to click one.
  const cards = document.getElementById("queue-cards");
  async function refresh() {
    try {
      const response = await fetch(cards.dataset.url, { redirect: "error" });
      if (response.ok && !cards.querySelector("button:hover, button:focus, a:active")) {
        cards.innerHTML = await response.text();
      }
      cards.classList.toggle("opacity-50", !response.ok);
    } catch (error) {
      cards.classList.add("opacity-50"); // The server is gone, or the login is over.
    }
    setTimeout(refresh, 1000 * cards.dataset.seconds);
  }
  if (cards) setTimeout(refresh, 1000 * cards.dataset.seconds);
})();
