// One OpenSearch node in a process of its own: `java -cp … Engine.java FOLDER PORT`. Prints its port once it answers.

import java.net.InetSocketAddress;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.Plugin;
import org.opensearch.transport.Netty4Plugin;

/** Nothing but a start: the node itself, its index, its translog and its HTTP are OpenSearch's own. */
public final class Engine extends Node {
    private Engine(Environment environment, List<Class<? extends Plugin>> plugins) {
        super(environment, plugins, false);
    }

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]);
        Settings settings = Settings.builder()
            .put("path.home", home.toString())
            .put("cluster.name", "tidegate")
            .put("node.name", "engine")
            .put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1")
            .put("http.port", arguments[1])
            // No other node is looked for; its own port is any that is free.
            .put("transport.port", "0")
            .put("http.type", "netty4")
            .put("transport.type", "netty4")
            // A machine whose disk is nearly full tests the disk, not the sink.
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .put("node.processors", 2)
            .build();
        Environment environment = InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), null, () -> "engine");
        Engine engine = new Engine(environment, List.of(Netty4Plugin.class));
        engine.start();
        InetSocketAddress address = engine.injector()
            .getInstance(HttpServerTransport.class).boundAddress().publishAddress().address();
        System.out.println("listening on " + address.getPort());
        System.out.flush();
        new CountDownLatch(1).await();
    }
}
