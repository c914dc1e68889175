// OpenTelemetry's SDK for JavaScript: one span, log record or metric for each name, in one request.
// `node otlp.mjs trace-http|trace-proto|trace-grpc|logs-proto|metrics-proto URL KEY NAME...` prints the names it was told are safe.
import { resourceFromAttributes } from '@opentelemetry/resources';
import { Metadata } from '@grpc/grpc-js';

const [kind, url, key, ...names] = process.argv.slice(2);
const headers = { authorization: `Bearer ${key}` };
const attributes = { amount: 12.5, large: 9007199254740991, note: 'naïve 日本 😀', empty: '', items: ['a', ''] };
const resource = resourceFromAttributes({ 'service.name': 'shop-js' });

async function exporter() {
  const [signal, form] = kind.split('-');
  const path = { trace: 'traces', logs: 'logs', metrics: 'metrics' }[signal];
  const options = form === 'grpc' ? { url, metadata: metadata() } : { url: `${url}/v1/${path}`, headers };
  const name = { trace: 'OTLPTraceExporter', logs: 'OTLPLogExporter', metrics: 'OTLPMetricExporter' }[signal];
  const module = await import(`@opentelemetry/exporter-${signal}-otlp-${form}`);
  return new module[name](options);
}

function metadata() {
  const metadata = new Metadata();
  metadata.set('authorization', headers.authorization);
  return metadata;
}

/** What the SDK makes of the names, as it hands it to an exporter. */
async function batch() {
  if (kind.startsWith('trace')) {
    const { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } = await import('@opentelemetry/sdk-trace-base');
    const memory = new InMemorySpanExporter();
    const provider = new BasicTracerProvider({ resource, spanProcessors: [new SimpleSpanProcessor(memory)] });
    for (const name of names) provider.getTracer('lib', '1.0').startSpan(name, { attributes }).end();
    return memory.getFinishedSpans();
  }
  if (kind.startsWith('logs')) {
    const { InMemoryLogRecordExporter, LoggerProvider, SimpleLogRecordProcessor } = await import('@opentelemetry/sdk-logs');
    const memory = new InMemoryLogRecordExporter();
    // Its arguments were positions once.
    let processor = new SimpleLogRecordProcessor({ exporter: memory });
    const provider = new LoggerProvider({ resource, processors: [processor] });
    for (const name of names) provider.getLogger('lib', '1.0').emit({ body: name, attributes, severityNumber: 9, severityText: 'INFO' });
    await provider.forceFlush();
    return memory.getFinishedLogRecords();
  }
  const { InMemoryMetricExporter, MeterProvider, PeriodicExportingMetricReader, AggregationTemporality } = await import('@opentelemetry/sdk-metrics');
  const memory = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
  const reader = new PeriodicExportingMetricReader({ exporter: memory, exportIntervalMillis: 60000 });
  const provider = new MeterProvider({ resource, readers: [reader] });
  for (const name of names) provider.getMeter('lib', '1.0').createCounter(name).add(12.5, attributes);
  await reader.forceFlush();
  return memory.getMetrics().at(-1);
}

const [made, sender] = [await batch(), await exporter()];
const result = await new Promise((done) => sender.export(made, done));
console.log(JSON.stringify(result.code === 0 ? names : []));
process.exit(0);
