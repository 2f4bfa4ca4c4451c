# A service by GDBus, on the bus whose address is the argument: answers calls of any signature, and does what its methods
# are called.
import os, sys
import gi
from gi.repository import Gio, GLib

bus = Gio.DBusConnection.new_for_address_sync(
    sys.argv[1], Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION, None, None)
kept = []


def reply(call, body=None, fds=None, error=None):
    answer = call.new_method_error_literal(error, '') if error else Gio.DBusMessage.new_method_reply(call)
    if body is not None:
        answer.set_body(body)
    if fds is not None:
        answer.set_unix_fd_list(fds)
    bus.send_message(answer, Gio.DBusSendMessageFlags.NONE)


def echo(call, body):
    reply(call, body, call.get_unix_fd_list())


def errors(call, body):
    reply(call, body, error='org.test.Error.Several')


def flags(call, body):
    reply(call, GLib.Variant('(u)', (int(call.get_flags()),)))


def pipes(call, body):
    # Says something through each descriptor that came, and answers with the reading ends of as many pipes.
    came, answer = call.get_unix_fd_list(), Gio.UnixFDList.new()
    for index in range(came.get_length()):
        there = came.get(index)
        os.write(there, b'to %d' % index)
        os.close(there)
        reading, writing = os.pipe()
        os.write(writing, b'from %d' % index)
        os.close(writing)
        answer.append(reading)
        os.close(reading)
    reply(call, GLib.Variant('(ah)', (list(range(came.get_length())),)), answer)


def keep(call, body):
    # Answers come when 'now' is called, the last call first; or never.
    kept.append((call, body))
    if body.unpack() == ('now',):
        while kept:
            reply(*kept.pop())


def die(call, body):
    os._exit(0)


def leave(call, body):
    # Some answers are waited for, and the connection ends. This is the thread that would have to do it.
    GLib.idle_add(bus.close_sync, None)


def large(call, body):
    reply(call, GLib.Variant('(s)', ('x' * body.unpack()[0],)))


methods = dict(Echo=echo, Errors=errors, Flags=flags, Pipes=pipes, Keep=keep, Die=die, Leave=leave, Large=large)


def seen(connection, message, incoming):
    method = methods.get(message.get_member() or '')
    if not incoming or message.get_message_type() != Gio.DBusMessageType.METHOD_CALL or not method:
        return message
    method(message, message.get_body())
    return None


bus.add_filter(seen)
bus.call_sync('org.freedesktop.DBus', '/org/freedesktop/DBus', 'org.freedesktop.DBus', 'RequestName',
              GLib.Variant('(su)', ('org.test.Peer', 4)), None, Gio.DBusCallFlags.NONE, -1, None)
print('ready', flush=True)
loop = GLib.MainLoop()
bus.connect('closed', lambda *_: loop.quit())
loop.run()
