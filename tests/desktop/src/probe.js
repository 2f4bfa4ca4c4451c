// Runs in a GNOME Shell that is tested, by Eval: tells what the menu of the extension shows, and notifications, as a
// signal after each frame in which that is another. So a test waits for what a person would see, and for nothing else.
// Below that: the hands, which press what has a name.

globalThis.probe?.stop();

globalThis.probe = (() => {
    const {Gio, GLib, St} = imports.gi;
    const UUID = 'ipc@example.org';
    const NODE = '/org/example/Desktop', INTERFACE = 'org.example.Desktop';
    const MessageTray = Main.messageTray;
    const notifications = [];
    let told = '';

    const button = () => Main.panel.statusArea[UUID];

    function* actors(actor) {
        if (!actor.visible)
            return;
        yield actor;
        for (const child of actor.get_children())
            yield* actors(child);
    }

    // The labels of an actor that can be seen, in their order.
    const texts = actor => [...actors(actor)]
        .filter(it => it instanceof St.Label && it.text)
        .map(it => it.text);

    const isRow = actor => actor.style_class?.split(' ')
        .some(name => ['popup-menu-item', 'popup-separator-menu-item', 'popup-submenu-menu-item'].includes(name));

    const rows = () => [...actors(button().menu.box)].filter(isRow);

    function state() {
        const open = button()?.menu.isOpen ?? false;
        return {
            there: !!button() && !Main.layoutManager._startingUp && !Main.overview.visible,
            open,
            rows: open ? rows().map(texts).filter(row => row.length) : [],
            notifications,
            windows: global.get_window_actors().map(it => it.meta_window.title),
            settings: button() ? keys() : {},
        };
    }

    // The settings of the extension as they are in this process, by their keys, in GVariant's text format.
    let settings = null;
    function keys() {
        if (!settings) {
            settings = Main.extensionManager.lookup(UUID).stateObj.getSettings();
            settings.connect('changed', () => tell());
        }
        return Object.fromEntries(settings.settings_schema.list_keys().map(key => [key, settings.get_value(key).print(false)]));
    }

    function tell() {
        const now = JSON.stringify(state());
        if (now === told)
            return;
        told = now;
        Gio.DBus.session.emit_signal(null, NODE, INTERFACE, 'Shown', new GLib.Variant('(s)', [now]));
    }

    const seen = new Set();
    function look() {
        for (const source of MessageTray.getSources()) {
            for (const it of source.notifications.filter(it => !seen.has(it))) {
                seen.add(it);
                // What the shell itself says of this machine would only cover what is tested.
                if (source.title === 'System Information' && it.title.match(/privileged|Screen Lock/))
                    it.destroy();
                else
                    notifications.push(`${it.title}: ${it.bannerBodyText ?? it.body ?? ''}`);
            }
        }
    }

    const painted = global.stage.connect('after-paint', () => {
        look();
        tell();
    });

    const row = text => rows().find(it => texts(it).some(label => label.includes(text)));

    const isEntry = hint => it => it instanceof St.Entry && it.hint_text === hint;

    return {
        stop: () => global.stage.disconnect(painted),
        // Tells once more, for somebody who begins to listen.
        tell() {
            told = '';
            global.stage.queue_redraw();
        },
        activate: text => row(text).activate(null),
        press(text, name) {
            const found = [...actors(row(text))].find(it => it instanceof St.Button && it.accessible_name === name);
            found.emit('clicked', 1);
        },
        // Into the line with this hint, whether its part of the menu is open or not.
        enter(hint, text) {
            const all = [button().menu.box];
            for (const it of all)
                all.push(...it.get_children());
            const entry = all.find(isEntry(hint));
            entry.set_text(text);
            entry.clutter_text.emit('activate');
        },
    };
})();

// A session begins in the overview; what is tested is below it.
if (Main.layoutManager._startingUp)
    Main.layoutManager.connect('startup-complete', () => Main.overview.hide());
else
    Main.overview.hide();
probe.tell();
