import static org.eclipse.milo.opcua.sdk.server.OpcUaServerConfig.USER_TOKEN_POLICY_ANONYMOUS;
import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.ubyte;
import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.uint;
import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.ulong;
import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.ushort;

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.KeyPair;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.eclipse.milo.opcua.sdk.core.AccessLevel;
import org.eclipse.milo.opcua.sdk.core.Reference;
import org.eclipse.milo.opcua.sdk.core.ValueRank;
import org.eclipse.milo.opcua.sdk.server.EndpointConfig;
import org.eclipse.milo.opcua.sdk.server.ManagedNamespaceWithLifecycle;
import org.eclipse.milo.opcua.sdk.server.OpcUaServer;
import org.eclipse.milo.opcua.sdk.server.OpcUaServerConfig;
import org.eclipse.milo.opcua.sdk.server.SessionManager;
import org.eclipse.milo.opcua.sdk.server.identity.AnonymousIdentityValidator;
import org.eclipse.milo.opcua.sdk.server.items.DataItem;
import org.eclipse.milo.opcua.sdk.server.items.MonitoredItem;
import org.eclipse.milo.opcua.sdk.server.nodes.UaFolderNode;
import org.eclipse.milo.opcua.sdk.server.nodes.UaVariableNode;
import org.eclipse.milo.opcua.sdk.server.nodes.filters.AttributeFilters;
import org.eclipse.milo.opcua.stack.core.AttributeId;
import org.eclipse.milo.opcua.stack.core.NodeIds;
import org.eclipse.milo.opcua.stack.core.security.CertificateGroup;
import org.eclipse.milo.opcua.stack.core.security.CertificateValidator;
import org.eclipse.milo.opcua.stack.core.security.DefaultApplicationGroup;
import org.eclipse.milo.opcua.stack.core.security.DefaultCertificateManager;
import org.eclipse.milo.opcua.stack.core.security.MemoryCertificateQuarantine;
import org.eclipse.milo.opcua.stack.core.security.MemoryCertificateStore;
import org.eclipse.milo.opcua.stack.core.security.MemoryTrustListManager;
import org.eclipse.milo.opcua.stack.core.security.RsaSha256CertificateFactory;
import org.eclipse.milo.opcua.stack.core.security.SecurityPolicy;
import org.eclipse.milo.opcua.stack.core.transport.TransportProfile;
import org.eclipse.milo.opcua.stack.core.types.builtin.ByteString;
import org.eclipse.milo.opcua.stack.core.types.builtin.DataValue;
import org.eclipse.milo.opcua.stack.core.types.builtin.DateTime;
import org.eclipse.milo.opcua.stack.core.types.builtin.LocalizedText;
import org.eclipse.milo.opcua.stack.core.types.builtin.NodeId;
import org.eclipse.milo.opcua.stack.core.types.builtin.StatusCode;
import org.eclipse.milo.opcua.stack.core.types.builtin.Variant;
import org.eclipse.milo.opcua.stack.core.types.enumerated.MessageSecurityMode;
import org.eclipse.milo.opcua.stack.core.types.enumerated.TimestampsToReturn;
import org.eclipse.milo.opcua.stack.transport.server.tcp.OpcTcpServerTransport;
import org.eclipse.milo.opcua.stack.transport.server.tcp.OpcTcpServerTransportConfig;

/**
 * An OPC UA server that produces load whose every value is known beforehand.
 *
 * <pre>
 * LoadServer PORT TICKS PREFIX:KIND:COUNT:PERIOD_MS ...
 * </pre>
 *
 * Each group has the variables ns=2;s=PREFIX0 ... of a kind ("mixed": variable i has type i mod 19 of {@link Kind}; else
 * one kind's name) that change together every PERIOD_MS. After the trigger, which is the line `go [TICKS]` on stdin or a
 * true written to ns=2;s=run, each group makes TICKS ticks (0: until told). The value of variable i at tick k is
 * Kind.value(i, k); tests/services/milo.py says the same in Python. Before the trigger everything has its value of tick 0.
 * All values of a tick carry one source time, `started` + (k - first + 1) x PERIOD_MS, the time when the tick was due.
 *
 * Lines out: `ready`, `started PREFIX FIRST_TICK UNIX_NS` per group, `done PREFIX LAST_TICK` per group, `finished`.
 * Lines in: `go [TICKS]`, `stop`, `quit`; the end of stdin is `quit`. `kill true` ends every session with its
 * subscriptions, `kill false` without, and is answered by `killed`; `count` by `counted SESSIONS SUBSCRIPTIONS`.
 *
 * Values are pushed: a tick calls DataItem.setValue on what is subscribed and computes nothing else; a Read computes its
 * value from the tick.
 */
public final class LoadServer extends ManagedNamespaceWithLifecycle {

  private static final String NAMESPACE = "urn:mec:load";
  private static final String APPLICATION_URI = "urn:mec:load-server";
  private static final long UNIX_EPOCH_100NS = 116_444_736_000_000_000L;

  private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
  private final List<Group> groups = new ArrayList<>();
  private final Map<NodeId, Variable> variables = new HashMap<>();
  private final long defaultTicks;
  private volatile boolean running = false;
  private UaVariableNode run;
  private int groupsTicking = 0; // on the timer's thread only, as everything in start() and stop()

  public static void main(String[] args) throws Exception {
    OpcUaServer server = server(Integer.parseInt(args[0]));
    LoadServer load = new LoadServer(server, Long.parseLong(args[1]));
    for (int i = 2; i < args.length; i++) {
      load.groups.add(new Group(args[i].split(":")));
    }
    load.startup();
    server.startup().get();
    say("ready");
    load.obey(new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8)));
    Runtime.getRuntime().halt(0);
  }

  private LoadServer(OpcUaServer server, long defaultTicks) {
    super(server, NAMESPACE);
    this.defaultTicks = defaultTicks;
    getLifecycleManager().addStartupTask(this::addNodes);
  }

  private static OpcUaServer server(int port) throws Exception {
    Security.addProvider(new BouncyCastleProvider()); // has the signature of Aes256_Sha256_RsaPss
    OwnCertificate own = new OwnCertificate(System.getProperty("certificate"));
    CertificateGroup group =
        DefaultApplicationGroup.createAndInitialize(
            new MemoryTrustListManager(),
            new MemoryCertificateStore(),
            own,
            new CertificateValidator.InsecureCertificateValidator()); // every client is welcome
    OpcUaServerConfig config =
        OpcUaServerConfig.builder()
            .setApplicationName(LocalizedText.english("Milo load generator"))
            .setApplicationUri(APPLICATION_URI) // has namespace index 1, NAMESPACE has 2
            .setProductUri(APPLICATION_URI)
            .setEndpoints(endpoints(port, own.chain[0]))
            .setCertificateManager(new DefaultCertificateManager(new MemoryCertificateQuarantine(), group))
            .setIdentityValidator(AnonymousIdentityValidator.INSTANCE)
            .build();
    OpcTcpServerTransportConfig transport = OpcTcpServerTransportConfig.newBuilder().build();
    return new OpcUaServer(config, profile -> new OpcTcpServerTransport(transport));
  }

  /** None, and every current policy in both modes. */
  private static Set<EndpointConfig> endpoints(int port, X509Certificate certificate) {
    Set<EndpointConfig> endpoints = new LinkedHashSet<>();
    EndpointConfig.Builder builder =
        EndpointConfig.newBuilder()
            .setBindAddress("127.0.0.1")
            .setHostname("127.0.0.1")
            .setBindPort(port)
            .setPath("/")
            .setTransportProfile(TransportProfile.TCP_UASC_UABINARY)
            .addTokenPolicies(USER_TOKEN_POLICY_ANONYMOUS);
    endpoints.add(
        builder.copy().setSecurityPolicy(SecurityPolicy.None).setSecurityMode(MessageSecurityMode.None).build());
    for (SecurityPolicy policy :
        List.of(SecurityPolicy.Aes256_Sha256_RsaPss, SecurityPolicy.Aes128_Sha256_RsaOaep, SecurityPolicy.Basic256Sha256)) {
      for (MessageSecurityMode mode : List.of(MessageSecurityMode.Sign, MessageSecurityMode.SignAndEncrypt)) {
        endpoints.add(
            builder.copy().setCertificate(certificate).setSecurityPolicy(policy).setSecurityMode(mode).build());
      }
    }
    return endpoints;
  }

  /** The key and certificate in a PKCS#12 file, under the password "server". */
  private static final class OwnCertificate extends RsaSha256CertificateFactory {
    private final KeyPair keys;
    private final X509Certificate[] chain;

    OwnCertificate(String file) throws Exception {
      char[] password = "server".toCharArray();
      KeyStore store = KeyStore.getInstance("PKCS12");
      try (FileInputStream in = new FileInputStream(file)) {
        store.load(in, password);
      }
      X509Certificate certificate = (X509Certificate) store.getCertificate("server");
      keys = new KeyPair(certificate.getPublicKey(), (PrivateKey) store.getKey("server", password));
      chain = new X509Certificate[] {certificate};
    }

    @Override
    protected KeyPair createRsaSha256KeyPair() {
      return keys;
    }

    @Override
    protected X509Certificate[] createRsaSha256CertificateChain(KeyPair same) {
      return chain;
    }
  }

  // --- commands

  private void obey(BufferedReader commands) throws Exception {
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      String[] words = line.trim().split(" ");
      switch (words[0]) {
        case "go" -> start(words.length > 1 ? Long.parseLong(words[1]) : defaultTicks);
        case "stop" -> stop();
        case "kill" -> killSessions(Boolean.parseBoolean(words[1]));
        case "count" ->
            say(
                "counted "
                    + getServer().getSessionManager().getAllSessions().size()
                    + " "
                    + getServer().getSubscriptions().size());
        case "quit" -> { return; }
        default -> say("unknown command: " + line);
      }
    }
  }

  private void killSessions(boolean subscriptions) {
    SessionManager sessions = getServer().getSessionManager();
    sessions.getAllSessions().forEach(session -> sessions.killSession(session.getSessionId(), subscriptions));
    say("killed");
  }

  private void start(long ticks) {
    timer.execute(
        () -> {
          if (running) {
            return;
          }
          setRunning(true);
          groupsTicking = groups.size();
          long nowNs = System.currentTimeMillis() * 1_000_000L;
          for (Group group : groups) {
            group.begin(nowNs, ticks);
            long periodNs = group.periodMs * 1_000_000L;
            group.timer = timer.scheduleAtFixedRate(() -> tick(group), periodNs, periodNs, TimeUnit.NANOSECONDS);
          }
        });
  }

  private void stop() {
    timer.execute(
        () -> {
          if (running) {
            groups.stream().filter(group -> !group.timer.isCancelled()).forEach(this::end);
          }
        });
  }

  private void tick(Group group) {
    try {
      group.tick();
    } catch (RuntimeException bug) { // the timer would go silent
      bug.printStackTrace();
      Runtime.getRuntime().halt(1);
    }
    if (group.tick == group.lastTick) {
      end(group);
    }
  }

  private void end(Group group) {
    group.timer.cancel(false);
    say("done " + group.prefix + " " + group.tick);
    groupsTicking--;
    if (groupsTicking == 0) {
      setRunning(false);
      say("finished");
    }
  }

  private void setRunning(boolean now) {
    running = now;
    run.setValue(new DataValue(Variant.ofBoolean(now)));
  }

  private static synchronized void say(String line) {
    System.out.println(line);
    System.out.flush();
  }

  // --- address space

  private void addNodes() {
    for (Group group : groups) {
      UaFolderNode folder =
          new UaFolderNode(
              getNodeContext(),
              newNodeId(group.prefix),
              newQualifiedName(group.prefix),
              LocalizedText.english(group.prefix));
      getNodeManager().addNode(folder);
      folder.addReference(
          new Reference(
              folder.getNodeId(), NodeIds.Organizes, NodeIds.ObjectsFolder.expanded(), Reference.Direction.INVERSE));
      for (Variable variable : group.variables) {
        UaVariableNode node = variableNode(group.prefix + variable.index, variable.kind);
        node.getFilterChain().addLast(AttributeFilters.getValue(context -> group.valueOf(variable)));
        folder.addOrganizes(node);
        variables.put(node.getNodeId(), variable);
      }
    }
    run = variableNode("run", Kind.BOOLEAN);
    run.setAccessLevel(AccessLevel.toValue(AccessLevel.READ_WRITE));
    run.setUserAccessLevel(AccessLevel.toValue(AccessLevel.READ_WRITE));
    run.setValue(new DataValue(Variant.ofBoolean(false)));
    run.addReference(
        new Reference(run.getNodeId(), NodeIds.Organizes, NodeIds.ObjectsFolder.expanded(), Reference.Direction.INVERSE));
    run.addAttributeObserver(
        (node, attribute, value) -> {
          if (attribute == AttributeId.Value && Boolean.TRUE.equals(((DataValue) value).value().value())) {
            start(defaultTicks); // does nothing when it was start() that wrote it
          }
        });
  }

  private UaVariableNode variableNode(String name, Kind kind) {
    UaVariableNode node =
        new UaVariableNode.UaVariableNodeBuilder(getNodeContext())
            .setNodeId(newNodeId(name))
            .setBrowseName(newQualifiedName(name))
            .setDisplayName(LocalizedText.english(name))
            .setDataType(kind.dataType)
            .setTypeDefinition(NodeIds.BaseDataVariableType)
            .setAccessLevel(AccessLevel.READ_ONLY)
            .setUserAccessLevel(AccessLevel.READ_ONLY)
            .setValueRank((kind.isArray ? ValueRank.OneDimension : ValueRank.Scalar).getValue())
            .setMinimumSamplingInterval(0.0)
            .build();
    getNodeManager().addNode(node);
    return node;
  }

  // --- subscriptions

  @Override
  public void onDataItemsCreated(List<DataItem> items) {
    for (DataItem item : items) {
      Variable variable = variables.get(item.getReadValueId().getNodeId());
      if (variable != null && AttributeId.Value.uid().equals(item.getReadValueId().getAttributeId())) {
        timer.execute(() -> variable.subscribe(item)); // on the timer's thread: between two ticks
      } else {
        item.setValue(readOnce(item));
      }
    }
  }

  private DataValue readOnce(DataItem item) {
    ReadContext context = new ReadContext(getServer(), null);
    return read(context, 0.0, TimestampsToReturn.Both, List.of(item.getReadValueId())).get(0);
  }

  @Override
  public void onDataItemsModified(List<DataItem> items) {}

  @Override
  public void onDataItemsDeleted(List<DataItem> items) {
    for (DataItem item : items) {
      Variable variable = variables.get(item.getReadValueId().getNodeId());
      if (variable != null) {
        timer.execute(() -> variable.items.remove(item));
      }
    }
  }

  @Override
  public void onMonitoringModeChanged(List<MonitoredItem> items) {}

  // --- groups, variables and their values

  /** Variables that change together. Fields but `tick` and `sourceTime` belong to the timer's thread. */
  private static final class Group {
    final String prefix;
    final long periodMs;
    final Variable[] variables;
    ScheduledFuture<?> timer;
    long lastTick = 0;
    long firstNs = System.currentTimeMillis() * 1_000_000L;
    long firstTick = 0;
    volatile long tick = 0;

    Group(String[] spec) {
      prefix = spec[0];
      periodMs = Long.parseLong(spec[3]);
      variables = new Variable[Integer.parseInt(spec[2])];
      for (int i = 0; i < variables.length; i++) {
        variables[i] = new Variable(this, i, Kind.of(spec[1], i));
      }
    }

    void begin(long nowNs, long ticks) {
      firstTick = tick;
      firstNs = nowNs;
      lastTick = ticks == 0 ? Long.MAX_VALUE : tick + ticks;
      say("started " + prefix + " " + (tick + 1) + " " + nowNs);
    }

    void tick() {
      long now = tick + 1;
      DateTime time = timeOf(now);
      tick = now;
      for (Variable variable : variables) {
        if (!variable.items.isEmpty()) {
          variable.push(variable.valueAt(now, time));
        }
      }
    }

    DataValue valueOf(Variable variable) {
      long now = tick;
      return variable.valueAt(now, timeOf(now));
    }

    private DateTime timeOf(long k) {
      long unixNs = firstNs + (k - firstTick) * periodMs * 1_000_000L;
      return new DateTime(UNIX_EPOCH_100NS + unixNs / 100);
    }
  }

  /** One variable and what is subscribed to it; `items` belongs to the timer's thread. */
  private static final class Variable {
    final Group group;
    final int index;
    final Kind kind;
    final List<DataItem> items = new ArrayList<>(1);

    Variable(Group group, int index, Kind kind) {
      this.group = group;
      this.index = index;
      this.kind = kind;
    }

    void subscribe(DataItem item) {
      items.add(item);
      item.setValue(group.valueOf(this));
    }

    void push(DataValue value) {
      for (DataItem item : items) {
        item.setValue(value);
      }
    }

    DataValue valueAt(long k, DateTime time) {
      return new DataValue(new Variant(kind.value(index, k)), StatusCode.GOOD, time, time);
    }
  }

  /** The types and, for each, the value of variable i at tick k; h = 7919 i + k. */
  private enum Kind {
    DOUBLE(NodeIds.Double, false),
    FLOAT(NodeIds.Float, false),
    SBYTE(NodeIds.SByte, false),
    BYTE(NodeIds.Byte, false),
    INT16(NodeIds.Int16, false),
    UINT16(NodeIds.UInt16, false),
    INT32(NodeIds.Int32, false),
    UINT32(NodeIds.UInt32, false),
    INT64(NodeIds.Int64, false),
    UINT64(NodeIds.UInt64, false),
    BOOLEAN(NodeIds.Boolean, false),
    STRING(NodeIds.String, false),
    DATETIME(NodeIds.DateTime, false),
    BYTESTRING(NodeIds.ByteString, false),
    GUID(NodeIds.Guid, false),
    LOCALIZEDTEXT(NodeIds.LocalizedText, false),
    DOUBLE_ARRAY(NodeIds.Double, true),
    INT32_ARRAY(NodeIds.Int32, true),
    STRING_ARRAY(NodeIds.String, true);

    private static final long SPREAD_32 = 2_654_435_761L;
    private static final long SPREAD_64 = 0x9E3779B97F4A7C15L;
    private static final long EPOCH_2020_100NS = UNIX_EPOCH_100NS + 1_577_836_800L * 10_000_000L;

    final NodeId dataType;
    final boolean isArray;

    Kind(NodeId dataType, boolean isArray) {
      this.dataType = dataType;
      this.isArray = isArray;
    }

    static Kind of(String name, int index) {
      return name.equals("mixed") ? values()[index % values().length] : valueOf(name.toUpperCase());
    }

    Object value(int i, long k) {
      long h = 7919L * i + k;
      return switch (this) {
        case DOUBLE -> h / 8.0;
        case FLOAT -> (h & 0xFFFFF) / 8.0f;
        case SBYTE -> (byte) h;
        case BYTE -> ubyte(h & 0xFF);
        case INT16 -> (short) h;
        case UINT16 -> ushort((int) (h & 0xFFFF));
        case INT32 -> (int) (h * SPREAD_32);
        case UINT32 -> uint((h * SPREAD_32) & 0xFFFFFFFFL);
        case INT64 -> h * SPREAD_64;
        case UINT64 -> ulong(h * SPREAD_64);
        case BOOLEAN -> (h & 1) == 1;
        case STRING -> "v" + i + " tick " + k + " \u00b5\u20ac";
        case DATETIME -> new DateTime(EPOCH_2020_100NS + h * 10_010L);
        case BYTESTRING -> ByteString.of(ByteBuffer.allocate(8).putLong(h).array());
        case GUID -> new UUID(h * SPREAD_64, ~h);
        case LOCALIZEDTEXT -> new LocalizedText("en", "text " + i + " " + k);
        case DOUBLE_ARRAY -> new Double[] {h / 8.0, -h / 8.0, (double) k};
        case INT32_ARRAY -> new Integer[] {i, (int) k, (int) -k, (int) (h * SPREAD_32)};
        case STRING_ARRAY -> new String[] {"a" + i, "b" + k, ""};
      };
    }
  }
}
