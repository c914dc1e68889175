// Snowplow's tracker for Node: what was refused goes again with the next flush.
import { buildSelfDescribingEvent, newTracker } from "@snowplow/node-tracker";
import { sleep, task, tell } from "./program.mjs";

const { url, key, names, data, schema, method, patience } = await task();
const told = new Set();
const waiting = new Map();

const tracker = newTracker(
  { namespace: "test", appId: "shop", encodeBase64: true },
  {
    endpoint: url,
    eventMethod: method,
    bufferSize: names.length + 1,
    ...(key ? { customHeaders: { Authorization: `Bearer ${key}` } } : {}),
    onRequestSuccess: (events) => {
      for (const { eid } of events) {
        told.add(waiting.get(eid));
        waiting.delete(eid);
      }
    },
    onRequestFailure: ({ events, willRetry }) => {
      if (!willRetry) for (const { eid } of events) waiting.delete(eid);
    },
  },
);

for (const name of names) {
  const event = { event: { schema, data: { ...data, name } } };
  const context = [{ schema: "iglu:com.example/shop/jsonschema/1-0-0", data: { cart: 7.5 } }];
  waiting.set(tracker.track(buildSelfDescribingEvent(event), context).eid, name);
}
for (const until = Date.now() + patience; waiting.size && Date.now() < until; await sleep(300)) {
  await tracker.flush();
  await sleep(10);
}
tell(told);
