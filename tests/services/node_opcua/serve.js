// What every server on node-opcua here shares: the package, how a server is run, commands in and answers out.
"use strict";

const path = require("path");
const readline = require("readline");
const { createRequire } = require("module");

// These files are run from the repository; node-opcua lives in the cache folder that they are started with.
const opcua = createRequire(path.join(process.env.NODE_OPCUA_FOLDER, "package.json"))("node-opcua");

// Runs a server on 127.0.0.1 with options of node-opcua; every certificate is accepted. populate(server) fills its address
// space before it starts, and gives the function that obeys a command, one line of JSON on stdin. Lines out: "ready", then
// for each command what that function gives, "done" where it gives nothing, or "error ...". The end of stdin is a stop.
async function run(port, pkiFolder, options, populate) {
  opcua.Subscription.minimumPublishingInterval = 10;
  const server = new opcua.OPCUAServer({
    port: Number(port),
    host: "127.0.0.1",
    hostname: "127.0.0.1",
    serverCertificateManager: new opcua.OPCUACertificateManager({
      rootFolder: pkiFolder,
      automaticallyAcceptUnknownCertificate: true,
    }),
    allowAnonymous: true,
    disableDiscovery: true,
    ...options,
  });
  await server.initialize();
  const obey = populate(server);
  await server.start();
  const stop = () => server.shutdown(0).then(() => process.exit(0));
  const commands = readline.createInterface({ input: process.stdin });
  commands.on("line", (line) => {
    try {
      console.log(obey(JSON.parse(line)) ?? "done");
    } catch (error) {
      console.log(`error ${line}: ${error.message}`);
      console.error(error);
    }
  });
  commands.on("close", stop);
  process.on("SIGTERM", stop);
  console.log("ready");
}

function serve(...given) {
  run(...given).catch((error) => {
    console.error(error);
    process.exit(1);
  });
}

module.exports = { opcua, serve };
