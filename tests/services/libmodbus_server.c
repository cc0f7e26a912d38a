/* A foreign Modbus server on Debian's libmodbus.
 *
 *   libmodbus_server PORT                        listens on 127.0.0.1 for several clients, answers every unit id
 *   libmodbus_server PORT stamp                  the same, with the time in its input registers
 *   libmodbus_server DEVICE BAUD PARITY UNIT     RTU on a serial port (parity N, E or O), answers that unit
 *
 * Its image, LIMIT addresses of each kind:
 *
 *   holding register r   (r * 31 + 7) mod 65536       writable
 *   input register r     (r * 17 + 3) mod 65536
 *   coil c               c mod 3 == 0                 writable
 *   discrete input d     d mod 5 == 0
 *
 * With "stamp" input registers 0 to 3 are the UTC time in microseconds since 1970 of each request, an int64.
 *
 * An address of LIMIT or more is answered with exception 2 (illegal data address). Prints "ready". One select loop.
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LIMIT = 2000, CLIENTS_MAX = 64 };

static modbus_mapping_t *make_image(void) {
    modbus_mapping_t *image = modbus_mapping_new(LIMIT, LIMIT, LIMIT, LIMIT);
    if (image == NULL)
        return NULL;
    for (int i = 0; i < LIMIT; i++) {
        image->tab_registers[i] = (uint16_t)(i * 31 + 7);
        image->tab_input_registers[i] = (uint16_t)(i * 17 + 3);
        image->tab_bits[i] = i % 3 == 0;
        image->tab_input_bits[i] = i % 5 == 0;
    }
    return image;
}

static int stamping;

static void stamp(modbus_mapping_t *image) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t now_us = (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    for (int i = 0; i < 4; i++)
        image->tab_input_registers[i] = (uint16_t)(now_us >> (48 - 16 * i));
}

/* Answers one request of a client; false when the client has gone or sent what is no Modbus. */
static int answer(modbus_t *context, int client, modbus_mapping_t *image) {
    uint8_t request[MODBUS_TCP_MAX_ADU_LENGTH];
    modbus_set_socket(context, client);
    int length = modbus_receive(context, request);
    if (length == 0)
        return 1; /* libmodbus ignores a request that is not for it */
    if (stamping)
        stamp(image);
    return length > 0 && modbus_reply(context, request, length, image) >= 0;
}

static void serve(modbus_t *context, int listener, modbus_mapping_t *image) {
    fd_set open;
    FD_ZERO(&open);
    FD_SET(listener, &open);
    int highest = listener, clients = 0;
    for (;;) {
        fd_set readable = open;
        if (select(highest + 1, &readable, NULL, NULL, NULL) < 0)
            return;
        for (int fd = 0; fd <= highest; fd++) {
            if (!FD_ISSET(fd, &readable))
                continue;
            if (fd == listener) {
                int client = accept(listener, NULL, NULL);
                if (client < 0)
                    continue;
                if (clients == CLIENTS_MAX || client >= FD_SETSIZE) {
                    close(client);
                    continue;
                }
                FD_SET(client, &open);
                clients++;
                if (client > highest)
                    highest = client;
            } else if (!answer(context, fd, image)) {
                FD_CLR(fd, &open);
                close(fd);
                clients--;
            }
        }
    }
}

/* RTU: libmodbus says EIO or EBADF when the port is gone; a frame that is damaged or not for it is nothing to it. */
static int serve_serial(char **argv, modbus_mapping_t *image) {
    modbus_t *context = modbus_new_rtu(argv[1], atoi(argv[2]), argv[3][0], 8, 1);
    if (context == NULL || modbus_set_slave(context, atoi(argv[4])) < 0 || modbus_connect(context) < 0) {
        fprintf(stderr, "cannot serve on %s: %s\n", argv[1], modbus_strerror(errno));
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        uint8_t request[MODBUS_RTU_MAX_ADU_LENGTH];
        int length = modbus_receive(context, request);
        if (length > 0)
            modbus_reply(context, request, length, image);
        else if (length < 0 && (errno == EIO || errno == EBADF || errno == ECONNRESET))
            return 1;
    }
}

int main(int argc, char **argv) {
    modbus_mapping_t *image = make_image();
    if (argc == 5 && image != NULL)
        return serve_serial(argv, image);
    stamping = argc == 3 && strcmp(argv[2], "stamp") == 0;
    if (argc != 2 && !stamping) {
        fprintf(stderr, "usage: %s PORT [stamp] | DEVICE BAUD PARITY UNIT\n", argv[0]);
        return 2;
    }
    modbus_t *context = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    int listener = context == NULL ? -1 : modbus_tcp_listen(context, CLIENTS_MAX);
    if (image == NULL || listener < 0) {
        fprintf(stderr, "cannot serve on port %s: %s\n", argv[1], modbus_strerror(errno));
        return 1;
    }
    puts("ready");
    fflush(stdout);
    serve(context, listener, image);
    fprintf(stderr, "select failed: %s\n", modbus_strerror(errno));
    return 1;
}
