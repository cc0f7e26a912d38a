/* The fourth foreign OPC UA server: open62541, every built-in type, values set by a command.
 *
 *   server PORT [CERTIFICATE.der KEY.pem APPLICATION_URI [USER PASSWORD]]
 *
 * Endpoint None; with a certificate also Sign and SignAndEncrypt with every current policy; every client certificate is
 * accepted; anonymous, or with a user that one only. Namespace 2 is `urn:mec:open62541`, Objects/Plant holds
 * ns=2;s=<Name> for every entry of VARIABLES,
 * and Range and RangeArray. Lines in, JSON values as in Part 6, 5.4:
 *   set NAME SOURCE_MS STATUS VARIANT    (SOURCE_MS: UTC since 1970; -1: now)
 *   event SEVERITY MESSAGE               (a BaseEvent of the Server object)
 *   kill                                 (every session, with its subscriptions)
 *   count
 * Lines out: `ready`, then `done` after each command (`counted SESSIONS SUBSCRIPTIONS` after `count`), or `error NAME`.
 * The end of stdin, or SIGTERM, stops it. */
#include <open62541/plugin/accesscontrol_default.h>
#include <open62541/plugin/certificategroup_default.h>
#include <open62541/server.h>
#include <open62541/server_config_default.h>

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SESSIONS_MAX 100
#define LINE_MAX_BYTES 65536

static const char *const VARIABLES[][2] = {
    {"Boolean", "{\"UaType\":1,\"Value\":true}"},
    {"SByte", "{\"UaType\":2,\"Value\":-8}"},
    {"Byte", "{\"UaType\":3,\"Value\":8}"},
    {"Int16", "{\"UaType\":4,\"Value\":-16}"},
    {"UInt16", "{\"UaType\":5,\"Value\":16}"},
    {"Int32", "{\"UaType\":6,\"Value\":-32}"},
    {"UInt32", "{\"UaType\":7,\"Value\":32}"},
    {"Int64", "{\"UaType\":8,\"Value\":\"-6400000000000000000\"}"},
    {"UInt64", "{\"UaType\":9,\"Value\":\"12800000000000000000\"}"},
    {"Float", "{\"UaType\":10,\"Value\":0.5}"},
    {"Double", "{\"UaType\":11,\"Value\":0.25}"},
    {"String", "{\"UaType\":12,\"Value\":\"text\"}"},
    {"DateTime", "{\"UaType\":13,\"Value\":\"2020-01-01T00:00:00Z\"}"},
    {"Guid", "{\"UaType\":14,\"Value\":\"72962b91-fa75-4ae6-8d28-b404dc7daf63\"}"},
    {"ByteString", "{\"UaType\":15,\"Value\":\"AAEC\"}"},
    {"NodeId", "{\"UaType\":17,\"Value\":\"nsu=urn:mec:open62541;s=Double\"}"},
    {"StatusCode", "{\"UaType\":19,\"Value\":{\"Code\":2147483648}}"},
    {"QualifiedName", "{\"UaType\":20,\"Value\":\"1:name\"}"},
    {"LocalizedText", "{\"UaType\":21,\"Value\":{\"Locale\":\"en\",\"Text\":\"local\"}}"},
    {"DoubleArray", "{\"UaType\":11,\"Value\":[0.25,0.5]}"},
    {"Int32Array", "{\"UaType\":6,\"Value\":[-1,0,1]}"},
    {"StringArray", "{\"UaType\":12,\"Value\":[\"a\",\"\",\"b\"]}"},
    {"BooleanArray", "{\"UaType\":1,\"Value\":[true,false]}"},
    {"Matrix", "{\"UaType\":6,\"Value\":[1,2,3,4,5,6],\"Dimensions\":[2,3]}"},
};

/* Written on the server's thread, read on the commands'. */
static UA_NodeId sessions[SESSIONS_MAX];
static int session_count = 0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static UA_UInt16 ns;
static volatile UA_Boolean running = true;

static void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vprintf(format, values);
    va_end(values);
    putchar('\n');
    fflush(stdout);
}

static void ensure(UA_StatusCode status, const char *what) {
    if(status != UA_STATUSCODE_GOOD) {
        say("error %s: %s", what, UA_StatusCode_name(status));
        exit(1);
    }
}

static UA_ByteString file(const char *path) {
    static char bytes[LINE_MAX_BYTES];
    FILE *in = fopen(path, "rb");
    size_t length = in ? fread(bytes, 1, sizeof bytes, in) : 0;
    ensure(length ? UA_STATUSCODE_GOOD : UA_STATUSCODE_BADNOTFOUND, path);
    fclose(in);
    UA_ByteString from = {length, (UA_Byte *)bytes}, copy;
    ensure(UA_ByteString_copy(&from, &copy), path);
    return copy;
}

static void count_sessions(UA_Server *server, UA_ApplicationNotificationType type, const UA_KeyValueMap payload) {
    (void)server;
    const UA_NodeId *id = UA_KeyValueMap_getScalar(&payload, UA_QUALIFIEDNAME(0, "session-id"), &UA_TYPES[UA_TYPES_NODEID]);
    pthread_mutex_lock(&lock);
    if(type == UA_APPLICATIONNOTIFICATIONTYPE_SESSION_CREATED && session_count < SESSIONS_MAX)
        UA_NodeId_copy(id, &sessions[session_count++]);
    for(int i = 0; type == UA_APPLICATIONNOTIFICATIONTYPE_SESSION_CLOSED && i < session_count; i++)
        if(UA_NodeId_equal(&sessions[i], id)) {
            UA_NodeId_clear(&sessions[i]);
            sessions[i] = sessions[--session_count];
            break;
        }
    pthread_mutex_unlock(&lock);
}

static UA_UInt32 subscriptions(UA_Server *server) {
    UA_Variant value;
    ensure(UA_Server_readValue(server, UA_NS0ID(SERVER_SERVERDIAGNOSTICS_SERVERDIAGNOSTICSSUMMARY), &value), "diagnostics");
    UA_UInt32 count = ((UA_ServerDiagnosticsSummaryDataType *)value.data)->currentSubscriptionCount;
    UA_Variant_clear(&value);
    return count;
}

static UA_Boolean decode(const char *json, UA_Variant *value) {
    UA_ByteString text = UA_BYTESTRING((char *)(uintptr_t)json);
    return UA_decodeJson(&text, value, &UA_TYPES[UA_TYPES_VARIANT], NULL) == UA_STATUSCODE_GOOD;
}

static void add_variable(UA_Server *server, char *name, UA_Variant value) {
    UA_VariableAttributes variable = UA_VariableAttributes_default;
    variable.displayName = UA_LOCALIZEDTEXT("", name);
    variable.value = value;
    variable.dataType = value.type->typeId;
    variable.valueRank = UA_VALUERANK_SCALAR;
    UA_UInt32 any_length[] = {0};
    if(!UA_Variant_isScalar(&value)) {
        variable.arrayDimensionsSize = value.arrayDimensionsSize ? value.arrayDimensionsSize : 1;
        variable.arrayDimensions = value.arrayDimensionsSize ? value.arrayDimensions : any_length;
        variable.valueRank = (UA_Int32)variable.arrayDimensionsSize;
    }
    ensure(UA_Server_addVariableNode(server, UA_NODEID_STRING(ns, name), UA_NODEID_STRING(ns, "Plant"),
                                     UA_NS0ID(HASCOMPONENT), UA_QUALIFIEDNAME(ns, name), UA_NS0ID(BASEDATAVARIABLETYPE),
                                     variable, NULL, NULL),
           name);
}

static void add_variables(UA_Server *server) {
    UA_ObjectAttributes object = UA_ObjectAttributes_default;
    ensure(UA_Server_addObjectNode(server, UA_NODEID_STRING(ns, "Plant"), UA_NS0ID(OBJECTSFOLDER), UA_NS0ID(ORGANIZES),
                                   UA_QUALIFIEDNAME(ns, "Plant"), UA_NS0ID(BASEOBJECTTYPE), object, NULL, NULL),
           "Plant");
    UA_Variant value;
    for(size_t i = 0; i < sizeof VARIABLES / sizeof *VARIABLES; i++) {
        char *name = (char *)(uintptr_t)VARIABLES[i][0];
        ensure(decode(VARIABLES[i][1], &value) ? UA_STATUSCODE_GOOD : UA_STATUSCODE_BADDECODINGERROR, name);
        add_variable(server, name, value);
        UA_Variant_clear(&value);
    }
    UA_Range ranges[] = {{-1.5, 2.5}, {0.0, 1.0}};
    UA_Variant_setScalar(&value, ranges, &UA_TYPES[UA_TYPES_RANGE]);
    add_variable(server, "Range", value);
    UA_Variant_setArray(&value, ranges, 2, &UA_TYPES[UA_TYPES_RANGE]);
    add_variable(server, "RangeArray", value);
}

/* "NAME SOURCE_MS STATUS VARIANT" */
static UA_Boolean set(UA_Server *server, const char *line) {
    char name[100];
    long long source_ms;
    unsigned status;
    int json;
    UA_DataValue data;
    UA_DataValue_init(&data);
    if(sscanf(line, "%99s %lld %u %n", name, &source_ms, &status, &json) < 3 || !decode(line + json, &data.value))
        return false;
    data.hasValue = data.hasStatus = data.hasSourceTimestamp = true;
    data.status = status;
    data.sourceTimestamp = source_ms < 0 ? UA_DateTime_now() : UA_DATETIME_UNIX_EPOCH + source_ms * UA_DATETIME_MSEC;
    UA_StatusCode written = UA_Server_writeDataValue(server, UA_NODEID_STRING(ns, name), data);
    UA_DataValue_clear(&data);
    return written == UA_STATUSCODE_GOOD;
}

static UA_Boolean event(UA_Server *server, char *line) {
    UA_UInt16 severity = (UA_UInt16)strtoul(line, &line, 10);
    return UA_Server_createEvent(server, UA_NS0ID(SERVER), UA_NS0ID(BASEEVENTTYPE), severity,
                                 UA_LOCALIZEDTEXT("en", line + 1), NULL, NULL, NULL) == UA_STATUSCODE_GOOD;
}

static UA_Boolean kill_sessions(UA_Server *server) {
    UA_NodeId all[SESSIONS_MAX];
    pthread_mutex_lock(&lock);
    int count = session_count;
    for(int i = 0; i < count; i++)
        UA_NodeId_copy(&sessions[i], &all[i]);
    pthread_mutex_unlock(&lock);
    for(int i = 0; i < count; i++) {
        UA_Server_closeSession(server, &all[i]); /* one may have ended meanwhile */
        UA_NodeId_clear(&all[i]);
    }
    return true;
}

static void *obey(void *server) {
    static char line[LINE_MAX_BYTES];
    while(fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if(!strcmp(line, "count")) {
            pthread_mutex_lock(&lock);
            int open = session_count;
            pthread_mutex_unlock(&lock);
            say("counted %d %u", open, subscriptions(server));
            continue;
        }
        UA_Boolean done = !strncmp(line, "set ", 4)     ? set(server, line + 4)
                          : !strncmp(line, "event ", 6) ? event(server, line + 6)
                          : !strcmp(line, "kill")       ? kill_sessions(server)
                                                        : false;
        say(done ? "done" : "error %s", line);
    }
    running = false;
    return NULL;
}

static void secure(UA_ServerConfig *config, UA_UInt16 port, char **given) {
    UA_ByteString certificate = file(given[0]), key = file(given[1]);
    ensure(UA_ServerConfig_setDefaultWithSecurityPolicies(config, port, &certificate, &key, NULL, 0, NULL, 0, NULL, 0),
           "security");
    UA_CertificateGroup_AcceptAll(&config->secureChannelPKI);
    UA_CertificateGroup_AcceptAll(&config->sessionPKI);
    UA_String_clear(&config->applicationDescription.applicationUri);
    config->applicationDescription.applicationUri = UA_STRING_ALLOC(given[2]);
    if(given[3]) {
        UA_UsernamePasswordLogin user = {UA_STRING(given[3]), UA_STRING(given[4])};
        ensure(UA_AccessControl_default(config, false, NULL, 1, &user), "user");
    }
    UA_ByteString_clear(&certificate);
    UA_ByteString_clear(&key);
}

static void stop(int signal_number) {
    (void)signal_number;
    running = false;
}

int main(int count, char **given) {
    UA_ServerConfig config;
    memset(&config, 0, sizeof config);
    UA_UInt16 port = (UA_UInt16)(count > 1 ? strtoul(given[1], NULL, 10) : 4840);
    if(count > 4)
        secure(&config, port, given + 2);
    else
        ensure(UA_ServerConfig_setMinimal(&config, port, NULL), "configuration");
    config.publishingIntervalLimits.min = config.samplingIntervalLimits.min = 10.0;
    config.queueSizeLimits.max = 100000;
    config.sessionNotificationCallback = count_sessions;
    UA_Server *server = UA_Server_newWithConfig(&config);
    ensure(server ? UA_STATUSCODE_GOOD : UA_STATUSCODE_BADOUTOFMEMORY, "server");
    ns = UA_Server_addNamespace(server, "urn:mec:open62541");
    add_variables(server);
    signal(SIGTERM, stop);
    ensure(UA_Server_run_startup(server), "start");
    say("ready");
    pthread_t commands;
    pthread_create(&commands, NULL, obey, server);
    while(running)
        UA_Server_run_iterate(server, true);
    UA_Server_run_shutdown(server);
    fflush(stdout);
    _Exit(0); /* the other thread may be reading still */
}
