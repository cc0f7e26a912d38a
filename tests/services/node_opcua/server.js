// The second foreign OPC UA server: every built-in type, endpoints None, Sign and SignAndEncrypt, users, values set by a command.
//
//   node server.js PORT PKI_FOLDER [USER PASSWORD]
//
// Objects/Plant has ns=1;s=<Type> for each type below and ns=1;s=<Type>Array for some, and ns=1;s=Historized, a Double
// with a history. Lines in, JSON:
//   {"set": "Double", "value": 1.5, "source_ms": 1795343713695, "status": 0}   (source_ms and status may be left out)
//   {"kill_sessions": true}   true: with their subscriptions; {"count": true}; {"stop": true}
// Lines out: "ready", "set NAME" after each set, "killed", "counted SESSIONS SUBSCRIPTIONS", "error ..." for what was not understood. The end of stdin is a stop.
"use strict";

const path = require("path");
const readline = require("readline");
// This file is run from the repository; node-opcua lives in the cache folder it is started with.
const { createRequire } = require("module");
const opcua = createRequire(path.join(process.env.NODE_OPCUA_FOLDER, "package.json"))("node-opcua");

const { DataType, VariantArrayType } = opcua;
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
  const type = isArray ? name.slice(0, -"Array".length) : name === "Historized" ? "Double" : name;
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
  server.engine.addressSpace.installHistoricalDataNode(variables.Historized, { maxOnlineValues: 10000 });
  return variables;
}

function obey(server, variables, line, stop) {
  const command = JSON.parse(line);
  if (command.stop) {
    return stop();
  }
  const { engine } = server;
  if (command.count) {
    console.log(`counted ${engine.currentSessionCount} ${engine.currentSubscriptionCount}`);
    return;
  }
  if (command.kill_sessions !== undefined) {
    for (const session of Object.values(engine._sessions)) {
      engine.closeSession(session.authenticationToken, command.kill_sessions, "Terminated");
    }
    console.log("killed");
    return;
  }
  const status = opcua.getStatusCodeFromCode(command.status || 0);
  const time = command.source_ms === undefined ? new Date() : new Date(command.source_ms);
  variables[command.set].setValueFromSource(variant(command.set, command.value), status, time);
  console.log(`set ${command.set}`);
}

async function main() {
  opcua.Subscription.minimumPublishingInterval = 10;
  opcua.MonitoredItem.minimumSamplingInterval = 0;
  const server = new opcua.OPCUAServer({
    port: Number(port),
    host: "127.0.0.1",
    hostname: "127.0.0.1",
    serverCertificateManager: new opcua.OPCUACertificateManager({
      rootFolder: pkiFolder,
      automaticallyAcceptUnknownCertificate: true,
    }),
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
    allowAnonymous: true,
    userManager: { isValidUser: (name, word) => user !== undefined && name === user && word === password },
    serverCapabilities: { minSupportedSampleRate: 0 },
    disableDiscovery: true,
  });
  await server.initialize();
  const variables = addVariables(server);
  await server.start();
  const stop = () => server.shutdown(0).then(() => process.exit(0));
  const commands = readline.createInterface({ input: process.stdin });
  commands.on("line", (line) => {
    try {
      obey(server, variables, line, stop);
    } catch (error) {
      console.log(`error ${line}: ${error.message}`);
    }
  });
  commands.on("close", stop);
  process.on("SIGTERM", stop);
  console.log("ready");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
