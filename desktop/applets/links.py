# Prints the network interfaces, and each again when its state is another.
import sys
from gi.repository import Gio, GLib
bus = Gio.bus_get_sync(Gio.BusType.SESSION if "session" in sys.argv else Gio.BusType.SYSTEM, None)
name = "org.example.IPC", "/org/example/IPC/netlink", "org.example.IPC.Netlink"
node = Gio.DBusProxy.new_sync(bus, Gio.DBusProxyFlags.NONE, None, *name, None)
last = 0
def told(proxy, sender, signal, arguments):
    if signal == "LinkChanged" and arguments[0] > last:
        print(arguments[2], arguments[3], flush=True)
node.connect("g-signal", told)
last, links = node.Links()
for index, interface, state, details in links:
    print(interface, state, flush=True)
GLib.MainLoop().run()
