// What this tab keeps of its session, so that a reload of the page goes on with it: never a picture, and nothing once
// the session is over.

const PLACE = "prospect.session";

export function keep(session) {
  sessionStorage.setItem(PLACE, JSON.stringify(session));
}

// What was kept, or null.
export function recall() {
  return JSON.parse(sessionStorage.getItem(PLACE));
}

export function forget() {
  sessionStorage.removeItem(PLACE);
}
