import static org.eclipse.milo.opcua.sdk.server.OpcUaServerConfig.USER_TOKEN_POLICY_ANONYMOUS;
import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.ubyte;
import static org.eclipse.milo.opcua.stack.core.types.builtin.unsigned.Unsigned.ushort;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import org.eclipse.milo.opcua.sdk.core.AccessLevel;
import org.eclipse.milo.opcua.sdk.core.Reference;
import org.eclipse.milo.opcua.sdk.core.ValueRank;
import org.eclipse.milo.opcua.sdk.server.EndpointConfig;
import org.eclipse.milo.opcua.sdk.server.ManagedNamespaceWithLifecycle;
import org.eclipse.milo.opcua.sdk.server.OpcUaServer;
import org.eclipse.milo.opcua.sdk.server.OpcUaServerConfig;
import org.eclipse.milo.opcua.sdk.server.identity.AnonymousIdentityValidator;
import org.eclipse.milo.opcua.sdk.server.items.DataItem;
import org.eclipse.milo.opcua.sdk.server.items.MonitoredItem;
import org.eclipse.milo.opcua.sdk.server.methods.AbstractMethodInvocationHandler;
import org.eclipse.milo.opcua.sdk.server.model.objects.BaseEventTypeNode;
import org.eclipse.milo.opcua.sdk.server.model.objects.ServerTypeNode;
import org.eclipse.milo.opcua.sdk.server.nodes.UaFolderNode;
import org.eclipse.milo.opcua.sdk.server.nodes.UaMethodNode;
import org.eclipse.milo.opcua.sdk.server.nodes.UaVariableNode;
import org.eclipse.milo.opcua.sdk.server.util.SubscriptionModel;
import org.eclipse.milo.opcua.stack.core.NodeIds;
import org.eclipse.milo.opcua.stack.core.security.DefaultCertificateManager;
import org.eclipse.milo.opcua.stack.core.security.MemoryCertificateQuarantine;
import org.eclipse.milo.opcua.stack.core.security.SecurityPolicy;
import org.eclipse.milo.opcua.stack.core.transport.TransportProfile;
import org.eclipse.milo.opcua.stack.core.types.builtin.ByteString;
import org.eclipse.milo.opcua.stack.core.types.builtin.DataValue;
import org.eclipse.milo.opcua.stack.core.types.builtin.DateTime;
import org.eclipse.milo.opcua.stack.core.types.builtin.LocalizedText;
import org.eclipse.milo.opcua.stack.core.types.builtin.NodeId;
import org.eclipse.milo.opcua.stack.core.types.builtin.Variant;
import org.eclipse.milo.opcua.stack.core.types.enumerated.MessageSecurityMode;
import org.eclipse.milo.opcua.stack.core.types.structured.Argument;
import org.eclipse.milo.opcua.stack.transport.server.tcp.OpcTcpServerTransport;
import org.eclipse.milo.opcua.stack.transport.server.tcp.OpcTcpServerTransportConfig;

/**
 * An OPC UA server with events, variables that may be written and a method: PlantServer PORT.
 *
 * <p>ns=2;s=Setpoint (Double), Count (Int16), Name (String), Limits (Double[]), Fixed (read only, 7.0), and the method
 * ns=2;s=Add (a: Double, b: Int32 -> Double) of ns=2;s=Plant. Lines in: `event SEVERITY TEXT`, an event of SystemEventType at
 * the Server object; `quit`, as the end of stdin. Lines out: `ready`, `done`.
 */
public final class PlantServer extends ManagedNamespaceWithLifecycle {

  private final SubscriptionModel subscriptions;
  private long events = 0;

  public static void main(String[] args) throws Exception {
    OpcUaServer server = server(Integer.parseInt(args[0]));
    PlantServer plant = new PlantServer(server);
    plant.startup();
    server.startup().get();
    say("ready");
    plant.obey(new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8)));
    Runtime.getRuntime().halt(0);
  }

  private PlantServer(OpcUaServer server) {
    super(server, "urn:mec:plant");
    subscriptions = new SubscriptionModel(server, this);
    getLifecycleManager().addLifecycle(subscriptions);
    getLifecycleManager().addStartupTask(this::addNodes);
  }

  private static OpcUaServer server(int port) {
    EndpointConfig endpoint =
        EndpointConfig.newBuilder()
            .setBindAddress("127.0.0.1")
            .setHostname("127.0.0.1")
            .setBindPort(port)
            .setPath("/")
            .setTransportProfile(TransportProfile.TCP_UASC_UABINARY)
            .setSecurityPolicy(SecurityPolicy.None)
            .setSecurityMode(MessageSecurityMode.None)
            .addTokenPolicies(USER_TOKEN_POLICY_ANONYMOUS)
            .build();
    OpcUaServerConfig config =
        OpcUaServerConfig.builder()
            .setApplicationName(LocalizedText.english("Milo plant"))
            .setApplicationUri("urn:mec:plant-server") // has namespace index 1, urn:mec:plant has 2
            .setProductUri("urn:mec:plant-server")
            .setEndpoints(Set.of(endpoint))
            .setCertificateManager(new DefaultCertificateManager(new MemoryCertificateQuarantine()))
            .setIdentityValidator(AnonymousIdentityValidator.INSTANCE)
            .build();
    OpcTcpServerTransportConfig transport = OpcTcpServerTransportConfig.newBuilder().build();
    return new OpcUaServer(config, profile -> new OpcTcpServerTransport(transport));
  }

  private void obey(BufferedReader commands) throws Exception {
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      String[] words = line.split(" ", 3);
      switch (words[0]) {
        case "event" -> raise(Integer.parseInt(words[1]), words[2]);
        case "quit" -> { return; }
        default -> say("unknown command: " + line);
      }
    }
  }

  private void raise(int severity, String text) throws Exception {
    BaseEventTypeNode event =
        getServer().getEventFactory().createEvent(newNodeId(UUID.randomUUID()), NodeIds.SystemEventType);
    event.setBrowseName(newQualifiedName("event"));
    event.setDisplayName(LocalizedText.english("event"));
    event.setEventId(ByteString.of(ByteBuffer.allocate(8).putLong(++events).array()));
    event.setEventType(NodeIds.SystemEventType);
    event.setSourceNode(NodeIds.Server);
    event.setSourceName("Server");
    event.setTime(DateTime.now());
    event.setReceiveTime(DateTime.now());
    event.setMessage(LocalizedText.english(text));
    event.setSeverity(ushort(severity));
    getServer().getEventNotifier().fire(event);
    event.delete();
    say("done");
  }

  private static synchronized void say(String line) {
    System.out.println(line);
    System.out.flush();
  }

  // --- address space

  private void addNodes() {
    if (getServer().getAddressSpaceManager().getManagedNode(NodeIds.Server).orElse(null) instanceof ServerTypeNode node) {
      node.setEventNotifier(ubyte(1));
    }
    UaFolderNode plant =
        new UaFolderNode(
            getNodeContext(), newNodeId("Plant"), newQualifiedName("Plant"), LocalizedText.english("Plant"));
    getNodeManager().addNode(plant);
    plant.addReference(
        new Reference(
            plant.getNodeId(), NodeIds.Organizes, NodeIds.ObjectsFolder.expanded(), Reference.Direction.INVERSE));
    addVariable(plant, "Setpoint", NodeIds.Double, false, AccessLevel.READ_WRITE, 20.0);
    addVariable(plant, "Count", NodeIds.Int16, false, AccessLevel.READ_WRITE, (short) 0);
    addVariable(plant, "Name", NodeIds.String, false, AccessLevel.READ_WRITE, "plant");
    addVariable(plant, "Limits", NodeIds.Double, true, AccessLevel.READ_WRITE, new Double[] {1.0, 2.0});
    addVariable(plant, "Fixed", NodeIds.Double, false, AccessLevel.READ_ONLY, 7.0);
    addMethod(plant);
  }

  private void addVariable(
      UaFolderNode plant, String name, NodeId type, boolean isArray, Set<AccessLevel> access, Object value) {
    UaVariableNode node =
        new UaVariableNode.UaVariableNodeBuilder(getNodeContext())
            .setNodeId(newNodeId(name))
            .setBrowseName(newQualifiedName(name))
            .setDisplayName(LocalizedText.english(name))
            .setDataType(type)
            .setTypeDefinition(NodeIds.BaseDataVariableType)
            .setAccessLevel(AccessLevel.toValue(access))
            .setUserAccessLevel(AccessLevel.toValue(access))
            .setValueRank((isArray ? ValueRank.OneDimension : ValueRank.Scalar).getValue())
            .build();
    node.setValue(new DataValue(new Variant(value)));
    getNodeManager().addNode(node);
    plant.addOrganizes(node);
  }

  private void addMethod(UaFolderNode plant) {
    UaMethodNode add =
        UaMethodNode.builder(getNodeContext())
            .setNodeId(newNodeId("Add"))
            .setBrowseName(newQualifiedName("Add"))
            .setDisplayName(LocalizedText.english("Add"))
            .build();
    Add handler = new Add(add);
    add.setInputArguments(handler.getInputArguments());
    add.setOutputArguments(handler.getOutputArguments());
    add.setInvocationHandler(handler);
    getNodeManager().addNode(add);
    add.addReference(
        new Reference(add.getNodeId(), NodeIds.HasComponent, plant.getNodeId().expanded(), Reference.Direction.INVERSE));
  }

  private static final class Add extends AbstractMethodInvocationHandler {

    Add(UaMethodNode node) {
      super(node);
    }

    @Override
    public Argument[] getInputArguments() {
      return new Argument[] {argument("a", NodeIds.Double), argument("b", NodeIds.Int32)};
    }

    @Override
    public Argument[] getOutputArguments() {
      return new Argument[] {argument("sum", NodeIds.Double)};
    }

    @Override
    protected Variant[] invoke(InvocationContext context, Variant[] given) {
      return new Variant[] {new Variant((Double) given[0].value() + (Integer) given[1].value())};
    }

    private static Argument argument(String name, NodeId type) {
      return new Argument(name, type, ValueRank.Scalar.getValue(), null, LocalizedText.english(name));
    }
  }

  // --- subscriptions

  @Override
  public void onDataItemsCreated(List<DataItem> items) {
    subscriptions.onDataItemsCreated(items);
  }

  @Override
  public void onDataItemsModified(List<DataItem> items) {
    subscriptions.onDataItemsModified(items);
  }

  @Override
  public void onDataItemsDeleted(List<DataItem> items) {
    subscriptions.onDataItemsDeleted(items);
  }

  @Override
  public void onMonitoringModeChanged(List<MonitoredItem> items) {
    subscriptions.onMonitoringModeChanged(items);
  }
}
