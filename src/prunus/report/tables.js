// Says where a table goes on beyond its frame.
const frames = new ResizeObserver(found => found.forEach(({ target }) => mark(target)));
function mark(box) { box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1); }
document.querySelectorAll(".scroll").forEach(box => { mark(box); frames.observe(box); });
