// The second foreign OPC UA server: every built-in type, endpoints None, Sign and SignAndEncrypt, users, values set by a command.
//
//   node server.js PORT PKI_FOLDER [USER PASSWORD]
//
// Objects/Plant has ns=1;s=<Type> for each type below and ns=1;s=<Type>Array for some, and ns=1;s=Historized, a Double
// with a history, and ns=1;s=Analog, a Double with EURange 0 ... 200; addTyped() says what else is there. Objects/Hall
// has the AnalogItem ns=1;s=Hall.Pressure in bar, and says when something is added to it or removed
// (GeneralModelChangeEvent).
// NODE_OPCUA_OPTIONS, JSON: `server`, options of the server; `clock_offset_ms`, by which its clock is wrong. Lines in, JSON:
//   {"set": "Double", "value": 1.5, "source_ms": 1795343713695, "status": 0}   (source_ms and status may be left out)
//   {"bind": "i=2267", "type": "Byte", "value": 150}   (what a node of the standard holds)
//   {"add": "Flow"} and {"remove": "Flow"}: the Double ns=1;s=Hall.Flow
//   {"kill_sessions": true}   (true: with their subscriptions)
//   {"count": true}   (the answer is "counted SESSIONS SUBSCRIPTIONS")
// Lines out: see serve.js.
"use strict";

const path = require("path");
const { opcua, serve } = require("./serve.js");

const { DataType, VariantArrayType } = opcua;
const more = JSON.parse(process.env.NODE_OPCUA_OPTIONS || "{}");
if (more.clock_offset_ms) {
  const RealDate = Date;
  globalThis.Date = class extends RealDate {
    constructor(...given) {
      super(...(given.length ? given : [RealDate.now() + more.clock_offset_ms]));
    }
    static now() {
      return RealDate.now() + more.clock_offset_ms;
    }
  };
}
const [port, pkiFolder, user, password] = process.argv.slice(2);

// Name -> its first value, in JSON's terms; fromJson() turns one into what node-opcua wants.
const SCALARS = {
  Boolean: true,
  SByte: -8,
  Byte: 8,
  Int16: -16,
  UInt16: 16,
  Int32: -32,
  UInt32: 32,
  Int64: "-6400000000000000000", // 64-bit integers as text: JSON's numbers are not exact
  UInt64: "12800000000000000000",
  Float: 0.5,
  Double: 0.25,
  String: "text",
  DateTime: "2020-01-01T00:00:00.000Z",
  Guid: "72962b91-fa75-4ae6-8d28-b404dc7daf63",
  ByteString: "AAEC", // base64
  XmlElement: "<a/>",
  NodeId: "ns=1;s=Double",
  ExpandedNodeId: "ns=1;s=Double",
  StatusCode: 0x80000000,
  QualifiedName: "1:name",
  LocalizedText: "local",
};
const ARRAYS = { DoubleArray: [0.25, 0.5], Int32Array: [-1, 0, 1], StringArray: ["a", "", "b"], BooleanArray: [true, false] };

function int64(text) {
  const bits = BigInt.asUintN(64, BigInt(text));
  return [Number(bits >> 32n), Number(bits & 0xffffffffn)];
}

const FROM_JSON = {
  Int64: int64,
  UInt64: int64,
  DateTime: (text) => new Date(text),
  ByteString: (text) => Buffer.from(text, "base64"),
  NodeId: opcua.resolveNodeId,
  ExpandedNodeId: (text) => opcua.ExpandedNodeId.fromNodeId(opcua.resolveNodeId(text)),
  StatusCode: (code) => opcua.getStatusCodeFromCode(code),
  QualifiedName: (text) => opcua.coerceQualifiedName(text),
  LocalizedText: (text) => new opcua.LocalizedText({ locale: "en", text }),
};

function variant(name, value) {
  const isArray = name.endsWith("Array");
  const type = isArray ? name.slice(0, -"Array".length) : name === "Historized" || name === "Analog" ? "Double" : name;
  const fromJson = FROM_JSON[type] || ((same) => same);
  return {
    dataType: DataType[type],
    arrayType: isArray ? VariantArrayType.Array : VariantArrayType.Scalar,
    value: isArray ? value.map(fromJson) : fromJson(value),
  };
}

function addVariables(server) {
  const namespace = server.engine.addressSpace.getOwnNamespace();
  const plant = namespace.addObject({ organizedBy: server.engine.addressSpace.rootFolder.objects, browseName: "Plant" });
  const variables = {};
  for (const [name, value] of Object.entries({ ...SCALARS, ...ARRAYS })) {
    const first = variant(name, value);
    variables[name] = namespace.addVariable({
      componentOf: plant,
      nodeId: `s=${name}`,
      browseName: name,
      dataType: first.dataType,
      valueRank: name.endsWith("Array") ? 1 : -1,
      minimumSamplingInterval: 0,
    });
    variables[name].setValueFromSource(first);
  }
  variables.Historized = namespace.addVariable({
    componentOf: plant,
    nodeId: "s=Historized",
    browseName: "Historized",
    dataType: "Double",
    minimumSamplingInterval: 0,
  });
  variables.Analog = namespace.addAnalogDataItem({
    componentOf: plant,
    nodeId: "s=Analog",
    browseName: "Analog",
    dataType: "Double",
    engineeringUnitsRange: { low: 0, high: 200 },
    minimumSamplingInterval: 0,
  });
  variables.Analog.setValueFromSource({ dataType: DataType.Double, value: 100 });
  addTyped(server.engine.addressSpace, plant);
  server.engine.addressSpace.installHistoricalDataNode(variables.Historized, { maxOnlineValues: 10000 });
  return variables;
}

function bind(server, { bind, type, value }) {
  const node = server.engine.addressSpace.findNode(bind);
  node.bindVariable({ get: () => new opcua.Variant({ dataType: DataType[type], value }) }, true);
  node.touchValue();
}

// Structures of types.xml, an enumeration, a matrix, a unit, names of states: what OpcuaTypes.EXPECTED of node_opcua.py has.
function addTyped(addressSpace, plant) {
  const namespace = addressSpace.getOwnNamespace();
  const types = addressSpace.getNamespaceIndex("urn:mec:types");
  const dataType = (name) => addressSpace.findDataType(name, types);
  const make = (name, fields) => addressSpace.constructExtensionObject(dataType(name), fields);
  const add = (name, type, value, more) => {
    const options = { componentOf: plant, nodeId: `s=${name}`, browseName: name, dataType: type, minimumSamplingInterval: 0 };
    namespace.addVariable({ ...options, ...more }).setValueFromSource(value);
  };
  const object = (value) => ({ dataType: DataType.ExtensionObject, value });
  const motor = {
    name: "spindle",
    state: 1,
    position: { x: 1.5, y: -2.5 },
    path: [{ x: 0, y: 0.25 }],
    counts: [1, 2, 3],
    started: new Date("2026-11-23T10:00:00.123Z"),
    cycle: 250.5,
  };
  add("Point", dataType("PointType").nodeId, object(make("PointType", { x: 1.5, y: -2.5 })));
  add("Motor", dataType("MotorType").nodeId, object(make("MotorType", motor)));
  add("Recipe", dataType("RecipeType").nodeId, object(make("RecipeType", { number: 7, amount: 2.5 })));
  add("Limit", dataType("LimitType").nodeId, object(make("LimitType", { name: "top" })));
  add("State", dataType("StateType").nodeId, { dataType: DataType.Int32, value: 2 });
  const matrix = { dataType: DataType.Int32, arrayType: VariantArrayType.Matrix, dimensions: [2, 3] };
  const dimensions = { valueRank: 2, arrayDimensions: [2, 3] };
  add("Matrix", "Int32", { ...matrix, value: Int32Array.from([1, 2, 3, 4, 5, 6]) }, dimensions);
  const place = (name) => ({ componentOf: plant, nodeId: `s=${name}`, browseName: name });
  namespace.addAnalogDataItem({
    ...place("Temperature"),
    dataType: "Double",
    engineeringUnitsRange: { low: -50, high: 150 },
    engineeringUnits: opcua.standardUnits.degree_celsius,
    value: { dataType: DataType.Double, value: 21.5 },
  });
  namespace.addMultiStateDiscrete({ ...place("Mode"), enumStrings: ["manual", "auto"], value: 1 });
  namespace.addTwoStateDiscrete({ ...place("Valve"), trueState: "open", falseState: "shut", value: true });
}

function addHall(server) {
  const { addressSpace } = server.engine;
  const namespace = addressSpace.getOwnNamespace();
  const organizedBy = addressSpace.rootFolder.objects;
  const hall = namespace.addObject({ organizedBy, browseName: "Hall", nodeVersion: "0" });
  namespace.addAnalogDataItem({
    componentOf: hall,
    nodeId: "s=Hall.Pressure",
    browseName: "Pressure",
    engineeringUnitsRange: { low: 0, high: 10 },
    engineeringUnits: opcua.standardUnits.bar,
    dataType: "Double",
    value: { dataType: "Double", value: 1.5 },
  });
  return {
    add: (name) =>
      namespace.addVariable({
        componentOf: hall,
        nodeId: `s=Hall.${name}`,
        browseName: name,
        dataType: "Double",
        value: { dataType: "Double", value: 2.5 },
      }),
    remove: (name) => addressSpace.deleteNode(hall.getComponentByName(name)),
  };
}

function obey(server, variables, hall, command) {
  const { engine } = server;
  if (command.count) {
    return `counted ${engine.currentSessionCount} ${engine.currentSubscriptionCount}`;
  }
  if (command.kill_sessions !== undefined) {
    for (const session of Object.values(engine._sessions)) {
      engine.closeSession(session.authenticationToken, command.kill_sessions, "Terminated");
    }
    return;
  }
  if (command.bind) {
    return bind(server, command);
  }
  for (const verb of ["add", "remove"]) {
    if (command[verb]) {
      hall[verb](command[verb]);
      return;
    }
  }
  const status = opcua.getStatusCodeFromCode(command.status || 0);
  const time = command.source_ms === undefined ? new Date() : new Date(command.source_ms);
  variables[command.set].setValueFromSource(variant(command.set, command.value), status, time);
}

opcua.MonitoredItem.minimumSamplingInterval = 0;
const options = {
  userCertificateManager: new opcua.OPCUACertificateManager({
    rootFolder: path.join(pkiFolder, "users"),
    automaticallyAcceptUnknownCertificate: true,
  }),
  securityModes: [
    opcua.MessageSecurityMode.None,
    opcua.MessageSecurityMode.Sign,
    opcua.MessageSecurityMode.SignAndEncrypt,
  ],
  securityPolicies: [
    opcua.SecurityPolicy.None,
    opcua.SecurityPolicy.Basic256Sha256,
    opcua.SecurityPolicy.Aes128_Sha256_RsaOaep,
    opcua.SecurityPolicy.Aes256_Sha256_RsaPss,
  ],
  userManager: { isValidUser: (name, word) => user !== undefined && name === user && word === password },
  serverCapabilities: { minSupportedSampleRate: 0 },
  nodeset_filename: [opcua.nodesets.standard, path.join(__dirname, "types.xml")],
  ...more.server,
};
serve(port, pkiFolder, options, (server) => {
  const variables = addVariables(server);
  const hall = addHall(server);
  return (command) => obey(server, variables, hall, command);
});
