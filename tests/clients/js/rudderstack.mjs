// RudderStack's SDK for Node, gzip as it comes.
import RudderAnalytics from "@rudderstack/rudder-sdk-node";
import { task, tell } from "./program.mjs";

const { url, key, names, data } = await task();
const told = new Set();
const client = new RudderAnalytics(key, { dataPlaneUrl: url, flushAt: names.length, flushInterval: 50, logLevel: "silly", errorHandler: () => {} });
client.logger = { error() {}, info() {}, debug() {}, silly() {}, warn() {} };
await Promise.all(
  names.map(
    (name) =>
      new Promise((resolve) => {
        const message = { userId: "user-1", event: "Signed Up", properties: { ...data, name }, messageId: name };
        client.track(message, (error) => resolve(error || told.add(name)));
      }),
  ),
);
tell(told);
