// Snowplow's browser tracker in a page; bundled by esbuild. The task is `window.task`.
import { flushBuffer, newTracker, trackSelfDescribingEvent } from "@snowplow/browser-tracker";

const { url, key, names, data, schema, method, patience } = window.task;
const told = [];
let waiting = names.length;
// Base64 by GET, plain by POST.
const plain = (text) => new TextDecoder().decode(Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0)));
const named = (event) => JSON.parse(event.ue_pr ?? plain(event.ue_px)).data.data.name;

newTracker("test", url, {
  appId: "shop",
  eventMethod: method,
  bufferSize: names.length,
  ...(key ? { customHeaders: { Authorization: `Bearer ${key}` } } : {}),
  onRequestSuccess: (events) => {
    told.push(...events.map(named));
    waiting -= events.length;
  },
  onRequestFailure: ({ events, willRetry }) => {
    if (!willRetry) waiting -= events.length;
  },
});
for (const name of names) trackSelfDescribingEvent({ event: { schema, data: { ...data, name } } });
for (const until = Date.now() + patience; waiting > 0 && Date.now() < until; ) {
  await new Promise((resolve) => setTimeout(resolve, 300));
  if (waiting > 0) flushBuffer();
}
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
