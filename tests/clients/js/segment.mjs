// Segment's library for Node.
import { Analytics } from "@segment/analytics-node";
import { task, tell } from "./program.mjs";

const { url, key, names, data } = await task();
const told = new Set();
const client = new Analytics({ writeKey: key, host: url, maxRetries: 3, flushAt: names.length, flushInterval: 50 });
client.on("error", () => {});
for (const name of names) {
  const message = { userId: "user-1", event: "Signed Up", properties: { ...data, name }, messageId: name };
  client.track(message, (error) => error || told.add(name));
}
await client.closeAndFlush({ timeout: 30000 });
tell(told);
