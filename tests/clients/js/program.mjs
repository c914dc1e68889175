// What the test programs share: the task comes as JSON on standard input, the names that were told safe go out as JSON.
import { text } from "node:stream/consumers";

export async function task() {
  return JSON.parse(await text(process.stdin));
}

export function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

// Ends the program: what a client still has in its queue is lost, as it is where a process ends.
export function tell(told) {
  process.stdout.write(JSON.stringify([...told]), () => process.exit(0));
}
