// What a page shows, taken elsewhere: in its address, which is copied on request, and as a file.
"use strict";
(() => {
  // A page opened from disk may change its query string too, as long as the path stays.
  function writeQuery(params) {
    const query = params.toString().replaceAll("%2C", ",");
    history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
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

  // RFC 4180, with a mark by which spreadsheets tell UTF-8.
  function toCsv(rows) {
    return `\ufeff${rows.map((row) => row.map(toField).join(",")).join("\r\n")}\r\n`;
  }

  // A spreadsheet takes text that begins like a formula for one; numbers are none, negative ones neither.
  function toField(value) {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[\s\u0000-\u001f]*[=+\-@|%\uff1d\uff0b\uff0d\uff20]|^[\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  (window.rove ||= {}).share = { writeQuery, copyLink, download, toCsv };
})();
