// Runs by gjs(1) in place of GNOME Shell's own program for the preferences of extensions, and is that program: the same
// service on the bus, which opens the dialog when it is asked to. Beside it, each line of the input is evaluated, and
// its value printed as JSON, with the hands below.

imports.gi.versions.Adw = '1';
imports.gi.versions.Gdk = '4.0';
imports.gi.versions.Gtk = '4.0';

const {Adw, Gio, GLib, GObject, Gtk} = imports.gi;
const System = imports.system;

const PROGRAM = '/usr/share/gnome-shell/org.gnome.Shell.Extensions.src.gresource';

Gio.Resource.load(PROGRAM)._register();
imports.searchPath.unshift('resource:///org/gnome/Shell/Extensions/js');
imports.gi.GIRepository.Repository.prepend_search_path('/usr/lib/gnome-shell/girepository-1.0');
imports.gi.GIRepository.Repository.prepend_library_path('/usr/lib/gnome-shell');
globalThis.programArgs = ARGV;

function* within(widget) {
    yield widget;
    for (let child = widget.get_first_child(); child; child = child.get_next_sibling())
        yield* within(child);
}

const windows = () => {
    const list = Gtk.Window.get_toplevels();
    return [...Array(list.get_n_items()).keys()].map(place => list.get_item(place));
};

const all = () => windows().flatMap(it => [...within(it)]);

/** The line of the dialog with this title. */
const row = title => all().find(it => it instanceof Adw.ActionRow && it.title === title);

function eachFrame(widget, condition, done) {
    widget.add_tick_callback(() => {
        if (!condition())
            return GLib.SOURCE_CONTINUE;
        done();
        return GLib.SOURCE_REMOVE;
    });
}

globalThis.hands = {
    titles: () => all().filter(it => it instanceof Adw.ActionRow).map(it => it.title),
    // As a click on the line does.
    press: title => row(title).activate(),
    active: title => [...within(row(title))].find(it => it instanceof Gtk.Switch).active,
    number: (title, value) => [...within(row(title))].find(it => it instanceof Gtk.SpinButton).set_value(value),
    // The button with this name.
    click: (name, title) => (title ? [...within(row(title))] : all())
        .find(it => it instanceof Gtk.Button && it.tooltip_text === name).emit('clicked'),
    // In the dialog for a folder, once it shows this one.
    choose(path) {
        const dialog = windows().find(it => it instanceof Gtk.FileChooserDialog);
        dialog.set_file(Gio.File.new_for_path(path));
        eachFrame(dialog, () => dialog.get_file()?.get_path() === path, () => dialog.response(Gtk.ResponseType.ACCEPT));
    },
    // Prints this text in the first frame in which the line with this title is there (or not), with its switch so.
    when(text, title, there, active = null) {
        const shown = () => (!!row(title) === there) && (active === null || hands.active(title) === active);
        eachFrame(windows()[0], shown, () => print(text));
    },
    close: () => windows().forEach(it => it.close()),
};

const input = new Gio.DataInputStream({base_stream: new Gio.UnixInputStream({fd: 0})});
function listen() {
    input.read_line_async(GLib.PRIORITY_DEFAULT, null, (_input, result) => {
        const [line] = input.read_line_finish_utf8(result);
        if (line === null)
            System.exit(0);
        try {
            print(`= ${JSON.stringify(eval(line)) ?? null}`);
        } catch (error) {
            print(`! ${error.message}`);
        }
        listen();
    });
}

Adw.init();
GObject.gtypeNameBasedOnJSPath = true;
listen();
const {DBusService} = imports.dbusService;
const {ExtensionsService} = imports.extensionsService;
new DBusService('org.gnome.Shell.Extensions', new ExtensionsService()).run();
