"""Apache Kafka on loopback, as its own makers publish it: brokers in KRaft mode that a test may kill, pause and start again."""

import base64
import shutil
import signal
import socket
import subprocess
import uuid
from pathlib import Path

import maven

HERE = Path(__file__).resolve().parent
HEAP = "256m"
# What a cluster on one machine needs, and what makes its tests quick: no waiting for members that may yet come.
COMMON = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "2097152",
    "controlled.shutdown.enable": "true",
}


def why_no_kafka():
    """What is missing to run it; `None` where nothing is."""
    missing = [program for program in ("java", "mvn") if not shutil.which(program)]
    return f"Apache Kafka needs {' and '.join(missing)}" if missing else None


def class_path():
    """Its jars, fetched by Maven where they are not here yet."""
    return maven.class_path(HERE / "pom.xml", "brokers")


def java(*arguments, heap=HEAP, options=()):
    """A command line of one of Kafka's programs."""
    return [
        "java", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *options,
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", class_path(), *arguments,
    ]  # fmt: skip


def tool(name, *arguments, timeout=120):
    """Runs one of Kafka's own tools to its end, `org.apache.kafka.tools.…` or a whole name, and returns what it printed."""
    whole = name if "." in name else f"org.apache.kafka.tools.{name}"
    done = subprocess.run(
        java(whole, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode != 0:
        raise AssertionError(f"{name} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


class Kafka:
    """A cluster of brokers, each also a controller; ready once it is made."""

    def __init__(self, folder, free_ports, wait_until, brokers=1, users=None, tls=None, callers=None, **settings):
        """`settings`: broker settings, `_` for `.`. `users`: names and passwords, who come in by `sasl_servers`; over TLS where
        `tls` is a file with a key and its certificate (PEM). There OAUTHBEARER takes any token that is not signed. Without users
        those come in there whose certificate one of `callers` (a file, PEM) has signed, and nobody else."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.wait_until = wait_until
        self.settings = {name.replace("_", "."): str(value) for name, value in settings.items()}
        self.numbers = range(1, brokers + 1)
        self.users, self.tls, self.callers = users or {}, tls, callers
        ports = free_ports(3 * brokers)
        self.ports = dict(zip(self.numbers, ports[:brokers], strict=True))
        self.quorum = dict(zip(self.numbers, ports[brokers : 2 * brokers], strict=True))
        self.sasl_ports = dict(zip(self.numbers, ports[2 * brokers :], strict=True))
        self.processes = {}
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        try:
            formats = [self.format(number, cluster) for number in self.numbers]
            for one in formats:
                if one.wait(60) != 0:
                    raise AssertionError(f"a broker's folder could not be made: {self.log(1)}")
            for number in self.numbers:
                self.spawn(number)
            self.wait()
        except BaseException:
            self.end()
            raise

    def properties(self, number):
        """What this broker is started with."""
        copies = min(3, len(self.numbers))
        return {
            **COMMON,
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{port}" for n, port in self.quorum.items()),
            "listeners": f"PLAINTEXT://127.0.0.1:{self.ports[number]},CONTROLLER://127.0.0.1:{self.quorum[number]}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.folder / f"data-{number}",
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": max(1, copies - 1),
            **(self.sasl(number) if self.users else self.mutual_tls(number) if self.callers else {}),
            **self.settings,
        }

    def sasl(self, number):
        """A second way in, for those who say who they are."""
        module = "org.apache.kafka.common.security"
        tls = {} if self.tls is None else {
            "listener.name.clients.ssl.keystore.type": "PEM", "listener.name.clients.ssl.keystore.location": self.tls,
        }  # fmt: skip
        protocol = "SASL_PLAINTEXT" if self.tls is None else "SASL_SSL"
        known = "".join(f' user_{name}="{password}"' for name, password in self.users.items())
        return {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.ports[number]},CLIENTS://127.0.0.1:{self.sasl_ports[number]},"
            f"CONTROLLER://127.0.0.1:{self.quorum[number]}",
            "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CLIENTS:{protocol},CONTROLLER:PLAINTEXT",
            "listener.name.clients.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.clients.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required{known};",
            "listener.name.clients.oauthbearer.sasl.jaas.config": f"{module}.oauthbearer.OAuthBearerLoginModule required;",
            **tls,
            "listener.name.clients.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
            "listener.name.clients.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        }

    def mutual_tls(self, number):
        """A second way in, for those with a certificate."""
        name = "listener.name.clients.ssl"
        return {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.ports[number]},CLIENTS://127.0.0.1:{self.sasl_ports[number]},"
            f"CONTROLLER://127.0.0.1:{self.quorum[number]}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CLIENTS:SSL,CONTROLLER:PLAINTEXT",
            f"{name}.keystore.type": "PEM",
            f"{name}.keystore.location": self.tls,
            f"{name}.truststore.type": "PEM",
            f"{name}.truststore.location": self.callers,
            f"{name}.client.auth": "required",
        }

    def format(self, number, cluster):
        """Writes its settings and begins to make its folder; a process to wait for."""
        config = self.config(number)
        config.write_text("".join(f"{key}={value}\n" for key, value in self.properties(number).items()))
        scram = []
        for name, password in self.users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                scram += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        with open(self.folder / f"broker-{number}.log", "ab") as log:
            return subprocess.Popen(
                java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(config), *scram), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def config(self, number):
        return self.folder / f"broker-{number}.properties"

    def log(self, number):
        return (self.folder / f"broker-{number}.log").read_text(errors="replace")[-3000:]

    @property
    def servers(self):
        """What a client is configured with."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports.values())

    @property
    def sasl_servers(self):
        """The same for `users` and `callers`."""
        return ",".join(f"127.0.0.1:{port}" for port in self.sasl_ports.values())

    def leader(self, topic, partition=0):
        """The number of the broker that leads a partition; -1: none does."""
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        try:
            admin = KafkaAdminClient(bootstrap_servers=self.alive_servers, request_timeout_ms=5000)
        except KafkaError:
            return -1
        try:
            found = admin.describe_topics([topic])[0]["partitions"]
            return next(one["leader_id"] for one in found if one["partition_index"] == partition)
        except KafkaError:
            # It asked one that is gone.
            return -1
        finally:
            admin.close()

    @property
    def alive_servers(self):
        """Of the brokers whose process runs."""
        running = (number for number, process in self.processes.items() if process.poll() is None)
        return ",".join(f"127.0.0.1:{self.ports[number]}" for number in running)

    def spawn(self, number):
        """Starts one broker and waits for nothing."""
        with open(self.folder / f"broker-{number}.log", "ab") as log:
            self.processes[number] = subprocess.Popen(
                java("kafka.Kafka", str(self.config(number))), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self):
        """Until as many brokers as run are in the cluster."""
        running = {number for number, process in self.processes.items() if process.poll() is None}
        # A client that comes too early waits long before it tries again.
        self.wait_until("the brokers listen", lambda: all(self.listens(number) for number in running), timeout=120, pause=0.1)
        self.wait_until("the brokers are there", lambda: self.alive() >= running, timeout=120, pause=0.2)

    def listens(self, number):
        if self.processes[number].poll() is not None:
            raise AssertionError(f"broker {number} ended with {self.processes[number].returncode}: {self.log(number)}")
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.ports[number])) == 0

    def alive(self):
        """The numbers of the brokers that the cluster knows."""
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        for number, process in self.processes.items():
            if process.poll() not in (None, -signal.SIGKILL, -signal.SIGTERM, 143):
                raise AssertionError(f"broker {number} ended with {process.returncode}: {self.log(number)}")
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.servers, request_timeout_ms=5000)
        except KafkaError:
            return set()
        try:
            return {broker["broker_id"] for broker in admin.describe_cluster()["brokers"]}
        except KafkaError:
            return set()
        finally:
            admin.close()

    def make_topic(self, name, partitions=1, copies=1, **settings):
        """Makes one topic; settings with `_` for `.`."""
        from kafka import KafkaAdminClient
        from kafka.admin import NewTopic

        admin = KafkaAdminClient(bootstrap_servers=self.servers)
        try:
            configs = {key.replace("_", "."): str(value) for key, value in settings.items()}
            admin.create_topics([NewTopic(name, partitions, copies, topic_configs=configs)])
        finally:
            admin.close()

    def kill(self, number):
        """kill -9."""
        self.processes[number].kill()
        self.processes[number].wait()

    def stop(self, number, timeout=60):
        """SIGTERM: leaders move first."""
        self.processes[number].terminate()
        self.processes[number].wait(timeout)

    def pause(self, number):
        self.processes[number].send_signal(signal.SIGSTOP)

    def resume(self, number):
        self.processes[number].send_signal(signal.SIGCONT)

    def start(self, number):
        """Starts a broker that ended, and waits until it is back in the cluster."""
        self.spawn(number)
        self.wait()

    def end(self):
        """Whatever happened before: no broker runs afterwards."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
