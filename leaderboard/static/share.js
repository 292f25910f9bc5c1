// What a page shows, in its address: written without a new entry in the history, and copied on request.
"use strict";
(() => {
  // A page opened from disk may change its query string too, as long as the path stays.
  function writeQuery(params) {
    const query = params.toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
  }

  // The clipboard may be refused; then the address is shown, selected, to be copied by hand.
  async function copyLink(button) {
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    } catch {
      showLink(button);
    }
  }

  function showLink(button) {
    const shown = button.nextElementSibling?.matches("input.link") ? button.nextElementSibling : makeInput();
    shown.value = location.href;
    button.after(shown);
    shown.select();
  }

  function makeInput() {
    const input = document.createElement("input");
    input.className = "link";
    input.readOnly = true;
    input.setAttribute("aria-label", "Link to this view");
    return input;
  }

  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  (window.rove ||= {}).share = { writeQuery, copyLink, download };
})();
