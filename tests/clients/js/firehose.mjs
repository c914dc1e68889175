// Sends named events with @aws-sdk/client-firehose and prints the names that it was told are safe.
//
//   node firehose.mjs URL KEY_ID SECRET STREAM MODE < events.json
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CreateDeliveryStreamCommand,
  DescribeDeliveryStreamCommand,
  FirehoseClient,
  ListDeliveryStreamsCommand,
  PutRecordBatchCommand,
  PutRecordCommand,
} from "@aws-sdk/client-firehose";

const [endpoint, accessKeyId, secretAccessKey, stream, mode] = process.argv.slice(2);
const events = JSON.parse(readFileSync(0, "utf8"));
const client = new FirehoseClient({
  endpoint,
  region: "us-east-1",
  credentials: { accessKeyId, secretAccessKey },
  maxAttempts: 6,
  retryMode: mode === "adaptive" ? "adaptive" : "standard",
});
const record = (event) => ({ Data: new TextEncoder().encode(JSON.stringify(event)) });
const told = { safe: [], errors: [] };
try {
  if (mode === "streams") {
    await client.send(new CreateDeliveryStreamCommand({ DeliveryStreamName: stream }));
    const described = await client.send(new DescribeDeliveryStreamCommand({ DeliveryStreamName: stream }));
    told.status = described.DeliveryStreamDescription.DeliveryStreamStatus;
    told.names = (await client.send(new ListDeliveryStreamsCommand({}))).DeliveryStreamNames;
  } else if (mode === "single") {
    for (const event of events) {
      await client.send(new PutRecordCommand({ DeliveryStreamName: stream, Record: record(event) }));
      told.safe.push(event.name);
    }
  } else {
    // As the documentation asks: what failed is sent again.
    let left = events;
    for (let round = 0; left.length !== 0 && round < 12; round += 1) {
      const Records = left.map(record);
      const answer = await client.send(new PutRecordBatchCommand({ DeliveryStreamName: stream, Records }));
      const failed = left.filter((_, at) => answer.RequestResponses[at].ErrorCode !== undefined);
      if (failed.length !== answer.FailedPutCount) throw new Error("FailedPutCount is not what the records say");
      told.safe.push(...left.filter((event) => !failed.includes(event)).map((event) => event.name));
      left = failed;
      if (left.length !== 0) await sleep(500);
    }
  }
} catch (error) {
  told.errors.push({ name: error.name, status: error.$metadata?.httpStatusCode, message: error.message });
}
process.stdout.write(JSON.stringify(told));
