// Prints the network interfaces, and each again when its state is another.
const {Gio, GLib} = imports.gi;
const bus = Gio.bus_get_sync(ARGV[0] === 'session' ? Gio.BusType.SESSION : Gio.BusType.SYSTEM, null);
const node = ['org.example.IPC', '/org/example/IPC/netlink', 'org.example.IPC.Netlink'];
let last = 0;
bus.signal_subscribe(node[0], node[2], 'LinkChanged', node[1], null, Gio.DBusSignalFlags.NONE, (...signal) => {
    const [seq, , name, state] = signal[5].deepUnpack();
    if (seq > last)
        print(name, state);
});
const [seq, links] = bus.call_sync(...node, 'Links', null, null, Gio.DBusCallFlags.NONE, -1, null).deepUnpack();
last = seq;
links.forEach(([, name, state]) => print(name, state));
new GLib.MainLoop(null, false).run();
