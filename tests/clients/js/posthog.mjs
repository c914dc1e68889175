// posthog-node, gzip as it comes, the key in the body. It says that a batch failed, not which events.
import { PostHog } from "posthog-node";
import { task, tell } from "./program.mjs";

const { url, key, names, data } = await task();
let failed = false;
const client = new PostHog(key, { host: url, flushAt: names.length, flushInterval: 50, fetchRetryDelay: 300 });
client.on("error", () => (failed = true));
for (const name of names) client.capture({ distinctId: "user-1", event: "signed up", properties: { ...data, name } });
try {
  await client.shutdown(30000);
} catch {
  failed = true;
}
tell(failed ? [] : names);
