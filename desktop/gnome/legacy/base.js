// What GNOME Shell 45 brings for extensions, on GNOME Shell 43 and 44: the base classes, and gettext under the
// names that the sources import. Only the archive for these versions has this file.

const ExtensionUtils = imports.misc.extensionUtils;

var {gettext, ngettext} = ExtensionUtils;

var Extension = class Extension {
    constructor(metadata) {
        this.metadata = metadata;
        this.uuid = metadata.uuid;
        this.path = ExtensionUtils.getCurrentExtension().path;
        ExtensionUtils.initTranslations();
    }

    getSettings() {
        return ExtensionUtils.getSettings();
    }

    openPreferences() {
        ExtensionUtils.openPrefs();
    }
};

var ExtensionPreferences = Extension;
