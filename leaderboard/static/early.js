// Before the first row is laid out: a table that will be cut into pages is not drawn whole first. If a script does not
// load, or fails, all rows are shown after all.
"use strict";
document.documentElement.classList.add("scripted");
addEventListener("error", () => document.documentElement.classList.remove("scripted"), true);
