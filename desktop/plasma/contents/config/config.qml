import QtQuick
import org.kde.plasma.configuration

ConfigModel {
    ConfigCategory {
        name: i18nc("@title", "General")
        icon: "org.example.IPC"
        source: "ConfigGeneral.qml"
    }
}
