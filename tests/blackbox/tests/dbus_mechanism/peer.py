# A service on the bus whose address is the argument: says what it is called with, one line a call, and does what it is
# told on its standard input.
import os, sys
import dbus, dbus.bus, dbus.lowlevel
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib

NAME, PATH, PROPERTIES = 'org.test.Peer', '/peer', 'org.freedesktop.DBus.Properties'
DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(sys.argv[1])


def length(values):
    one = values[0] if len(values) == 1 else None
    return len(one.encode()) if isinstance(one, str) else len(one) if isinstance(one, list) else len(values)


def called(message, member):
    values = message.get_args_list()
    print('call', member, message.get_signature(), message.get_path(), length(values), flush=True)
    if member in ('Echo', 'Note'):
        reply = dbus.lowlevel.MethodReturnMessage(message)
        reply.append(*values, signature=message.get_signature())
    elif member == 'Fail':
        reply = dbus.lowlevel.ErrorMessage(message, 'org.test.Error.Failed', values[0])
    elif member == 'Die':
        os._exit(0)
    else:
        return
    if not message.get_no_reply():
        bus.send_message(reply)


# The properties: their values, and whether a change is told with the value, without it, or not at all.
values = {'Volume': [dbus.UInt32(30), 'value'], 'Title': [dbus.String('none'), 'name'], 'Quiet': [dbus.Int64(1), 'no'],
          'Fixed': [dbus.Byte(7), 'value']}


def properties(message, member):
    arguments = message.get_args_list()
    name = arguments[1]
    if name not in values:
        return dbus.lowlevel.ErrorMessage(message, 'org.freedesktop.DBus.Error.UnknownProperty', f'no {name}')
    if member == 'Get':
        reply = dbus.lowlevel.MethodReturnMessage(message)
        reply.append(values[name][0], signature='v')
        return reply
    print('set', name, message.get_args_list()[2], flush=True)
    if name == 'Fixed':
        return dbus.lowlevel.ErrorMessage(message, 'org.freedesktop.DBus.Error.PropertyReadOnly', 'it is fixed')
    change(name, min(arguments[2], 100) if name == 'Volume' else arguments[2])
    return dbus.lowlevel.MethodReturnMessage(message)


def change(name, value):
    values[name][0] = value
    how = values[name][1]
    if how == 'no':
        return
    signal = dbus.lowlevel.SignalMessage(PATH, PROPERTIES, 'PropertiesChanged')
    signal.append(NAME, {name: value} if how == 'value' else {}, [name] if how == 'name' else [], signature='sa{sv}as')
    bus.send_message(signal)


def turn(number):
    change('Volume', dbus.UInt32(number))


def leave():
    bus.release_name(NAME)


def back():
    bus.request_name(NAME)


def seen(connection, message):
    if isinstance(message, dbus.lowlevel.MethodCallMessage) and message.get_interface() == PROPERTIES:
        bus.send_message(properties(message, message.get_member()))
        return dbus.lowlevel.HANDLER_RESULT_HANDLED
    if isinstance(message, dbus.lowlevel.MethodCallMessage) and message.get_interface() == NAME:
        called(message, message.get_member())
        return dbus.lowlevel.HANDLER_RESULT_HANDLED
    if isinstance(message, dbus.lowlevel.SignalMessage) and message.get_interface() in heard:
        values = message.get_args_list()
        values = values[0] if message.get_signature() == 'ay' else values
        print('heard', message.get_path(), message.get_member(), message.get_signature(), *map(str, map(plain, values)),
              flush=True)
    return dbus.lowlevel.HANDLER_RESULT_NOT_YET_HANDLED


def plain(value):
    return int(value) if isinstance(value, int) else str(value)


heard = set()


def say(word):
    signal = dbus.lowlevel.SignalMessage(PATH, NAME, 'Said')
    signal.append(word, signature='s')
    bus.send_message(signal)


def hear(interface):
    if interface not in heard:
        heard.add(interface)
        bus.add_match_string(f"type='signal',interface='{interface}'")


def told(stream, condition):
    line = sys.stdin.readline()
    if not line:
        loop.quit()
        return False
    verb, *words = line.split()
    globals()[verb](*words)
    bus.flush()
    # The bus has everything by now.
    bus.get_name_owner('org.freedesktop.DBus')
    print('done', flush=True)
    return True


bus.add_message_filter(seen)
bus.request_name(NAME)
GLib.io_add_watch(sys.stdin.fileno(), GLib.IO_IN | GLib.IO_HUP, told)
loop = GLib.MainLoop()
print('ready', flush=True)
loop.run()
