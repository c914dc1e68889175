// Elasticsearch's client for JavaScript: its bulk helper, or one `bulk` by hand, which has no retries for single documents.
import { Client } from "@elastic/elasticsearch";
import { task, tell } from "./program.mjs";

const { url, key, names, data, mode } = await task();
const client = new Client({ node: url, auth: { apiKey: key } });
const told = new Set();
const documents = names.map((name) => ({ ...data, name }));

try {
  if (mode === "helper") {
    await client.helpers.bulk({
      datasource: documents,
      onDocument: (document) => ({ index: { _index: "logs-js", _id: document.name } }),
      onSuccess: ({ document }) => told.add(document.name),
      wait: 1000,
      retries: 5,
    });
  } else {
    const operations = documents.flatMap((document) => [{ index: { _index: "logs-js", _id: document.name } }, document]);
    const { items } = await client.bulk({ operations });
    for (const { index } of items) if (index.status < 300) told.add(index._id);
  }
} catch (error) {
  // The client says so where it gives up; what it had told before stays told.
  process.stderr.write(`${error}\n`);
}
tell(told);
