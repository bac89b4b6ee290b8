// What the browser keeps for this page. Where it keeps nothing, or has no room, values are held until the page is closed.

class Store {
  constructor(open) {
    this.held = new Map();
    try {
      this.storage = open();
    } catch {
      this.storage = null; // blocked by the user's settings
    }
  }

  // Whether everything outlives the page.
  get isKept() {
    return this.held.size === 0;
  }

  get(key) {
    return this.storage?.getItem(key) ?? this.held.get(key) ?? null;
  }

  set(key, value) {
    try {
      if (!this.storage) throw new Error("blocked");
      this.storage.setItem(key, value);
    } catch {
      this.held.set(key, value);
    }
  }

  remove(key) {
    this.storage?.removeItem(key);
    this.held.delete(key);
  }

  keys() {
    return [...Object.keys(this.storage ?? {}), ...this.held.keys()];
  }
}

export const browser = new Store(() => localStorage);
export const tab = new Store(() => sessionStorage);
