// winston-loki: what failed goes again a minute later, or when the logger is closed, which is not waited for here.
import winston from "winston";
import LokiTransport from "winston-loki";
import { sleep, task, tell } from "./program.mjs";

const { url, key, names, data, json } = await task();
let failures = 0;
const transport = new LokiTransport({
  host: url,
  basicAuth: `shop:${key}`,
  labels: { app: "shop" },
  json,
  interval: 0.05,
  gracefulShutdown: false,
  format: winston.format.printf(({ message }) => message),
  onConnectionError: () => failures++,
});
const logger = winston.createLogger({ transports: [transport] });
for (const name of names) logger.info(JSON.stringify({ ...data, name }), { trace: "7" });
await sleep(500);
if (failures) await sleep(3000);
await new Promise((resolve) => transport.batcher.close(resolve));
tell(transport.batcher.batch.streams.length ? [] : names);
