// node-opcua as a plant: events, an alarm with acknowledgement, variables that may and may not be written, methods.
//
//   node plant.js PORT PKI_FOLDER
//
// Objects/Press (ns=1;s=Press, a notifier) has the variables ns=1;s=Setpoint (Double, EURange 0 ... 100), Count (Int16),
// Mode (enumeration Off, Auto, Manual), Name, Limits (Double[]), Fixed (read only), Stubborn (takes every Double and stays
// 1.0), the methods ns=1;s=Add (a: Double, b: Int32 -> Double) and ns=1;s=Refuse (BadInvalidState), and an off-normal alarm
// on ns=1;s=Guard. Lines in, JSON:
//   {"event": "text", "severity": 300}     an event of SystemEventType at Press
//   {"alarm": true}                        the alarm becomes active, or inactive
// Lines out: see serve.js.
"use strict";

const { opcua, serve } = require("./serve.js");

const { DataType, StatusCodes, VariantArrayType } = opcua;
const [port, pkiFolder] = process.argv.slice(2);

function addPlant(server) {
  const addressSpace = server.engine.addressSpace;
  addressSpace.installAlarmsAndConditionsService();
  const namespace = addressSpace.getOwnNamespace();
  const press = namespace.addObject({
    organizedBy: addressSpace.rootFolder.objects,
    nodeId: "s=Press",
    browseName: "Press",
    eventNotifier: 0x01,
    notifierOf: addressSpace.rootFolder.objects.server,
  });
  const add = (name, dataType, value, more = {}) => {
    const made = namespace.addVariable({ componentOf: press, nodeId: `s=${name}`, browseName: name, dataType, ...more });
    if (!more.value) {
      made.setValueFromSource({ dataType: DataType[dataType] ?? DataType.Int32, ...value });
    }
    return made;
  };
  namespace.addAnalogDataItem({
    componentOf: press,
    nodeId: "s=Setpoint",
    browseName: "Setpoint",
    dataType: "Double",
    engineeringUnitsRange: { low: 0, high: 100 },
    engineeringUnits: opcua.standardUnits.degree_celsius,
  }).setValueFromSource({ dataType: DataType.Double, value: 20 });
  add("Count", "Int16", { value: 0 });
  const mode = namespace.addEnumerationType({ browseName: "ModeType", enumeration: ["Off", "Auto", "Manual"] });
  add("Mode", mode, { dataType: DataType.Int32, value: 0 });
  add("Name", "String", { value: "press" });
  add("Limits", "Double", { arrayType: VariantArrayType.Array, value: [1, 2] }, { valueRank: 1 });
  add("Fixed", "Double", { value: 7 }, { accessLevel: "CurrentRead", userAccessLevel: "CurrentRead" });
  add("Stubborn", "Double", {}, {
    minimumSamplingInterval: 100,
    value: { get: () => new opcua.Variant({ dataType: DataType.Double, value: 1 }), set: () => StatusCodes.Good },
  });
  addMethods(namespace, press);
  return { press, alarm: addAlarm(namespace, press) };
}

function addMethods(namespace, press) {
  const argument = (name, dataType) => ({ name, dataType, description: { text: name } });
  namespace.addMethod(press, {
    nodeId: "s=Add",
    browseName: "Add",
    inputArguments: [argument("a", DataType.Double), argument("b", DataType.Int32)],
    outputArguments: [argument("sum", DataType.Double)],
  }).bindMethod(async (given, _context) => ({
    statusCode: StatusCodes.Good,
    outputArguments: [{ dataType: DataType.Double, value: given[0].value + given[1].value }],
  }));
  namespace.addMethod(press, { nodeId: "s=Refuse", browseName: "Refuse", inputArguments: [], outputArguments: [] })
    .bindMethod(async (_given, _context) => ({ statusCode: StatusCodes.BadInvalidState, outputArguments: [] }));
}

function addAlarm(namespace, press) {
  const guard = namespace.addVariable({
    componentOf: press, nodeId: "s=Guard", browseName: "Guard", dataType: "Boolean", eventSourceOf: press,
  });
  guard.setValueFromSource({ dataType: DataType.Boolean, value: false });
  return namespace.instantiateAlarmCondition("AlarmConditionType", {
    browseName: "GuardOpen",
    componentOf: press,
    conditionSource: guard,
    conditionName: "GuardOpen",
    inputNode: guard,
    nodeId: "s=GuardOpen",
    optionals: ["ConfirmedState", "Confirm"],
  });
}

function obey({ press, alarm }, command) {
  if (command.alarm !== undefined) {
    if (command.alarm) {
      alarm.activateAlarm();
      alarm.currentBranch().setAckedState(false);
    } else {
      alarm.deactivateAlarm();
    }
    alarm.raiseNewCondition({
      severity: command.severity ?? 700,
      quality: StatusCodes.Good,
      message: command.alarm ? "guard open" : "guard closed",
      retain: true,
    });
  } else {
    press.raiseEvent("SystemEventType", {
      sourceNode: { dataType: DataType.NodeId, value: press.nodeId },
      sourceName: { dataType: DataType.String, value: "Press" },
      message: { dataType: DataType.LocalizedText, value: { text: command.event } },
      severity: { dataType: DataType.UInt16, value: command.severity ?? 300 },
    });
  }
}

const options = {
  securityModes: [opcua.MessageSecurityMode.None, opcua.MessageSecurityMode.SignAndEncrypt],
  securityPolicies: [opcua.SecurityPolicy.None, opcua.SecurityPolicy.Basic256Sha256],
  userManager: { isValidUser: (name, word) => name === "operator" && word === "secret" },
};
serve(port, pkiFolder, options, (server) => {
  const plant = addPlant(server);
  return (command) => obey(plant, command);
});
