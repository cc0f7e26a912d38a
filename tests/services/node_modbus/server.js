// The second foreign Modbus server: modbus-serial on Node.js. Its registers hold what libmodbus_server.c holds.
//
//   node server.js PORT        Modbus TCP on 127.0.0.1
//   node server.js DEVICE      RTU on a serial port, 19200 8N1, unit 1
//
// Line out: "ready". The end of stdin is a stop.
"use strict";

const path = require("path");
// This file is run from the repository; modbus-serial lives in the cache folder it is started with.
const { createRequire } = require("module");
const modbus = createRequire(path.join(process.env.NODE_MODBUS_FOLDER, "package.json"))("modbus-serial");

const LIMIT = 2000;
const held = (value) => (address) => {
  if (address >= LIMIT) throw { modbusErrorCode: 2 };
  return value(address);
};
const vector = {
  getHoldingRegister: held((r) => (r * 31 + 7) % 65536),
  getInputRegister: held((r) => (r * 17 + 3) % 65536),
  getCoil: held((c) => c % 3 === 0),
  getDiscreteInput: held((d) => d % 5 === 0),
};

const place = process.argv[2];
const server = /^\d+$/.test(place)
  ? new modbus.ServerTCP(vector, { host: "127.0.0.1", port: Number(place) })
  : new modbus.ServerSerial(vector, { path: place, baudRate: 19200, parity: "none", unitID: 1, interval: 5 });
server.on("initialized", () => console.log("ready"));
server.on("error", (error) => console.log(`error ${error.message}`));
server.on("socketError", (error) => console.log(`error ${error.message}`));
process.stdin.on("end", () => process.exit(0)).resume();
