// D-Bus for QML in Qt 5: what the widget uses of org.kde.plasma.workspace.dbus, which came with Plasma 6, under the same
// names, so that its sources are the same for both.

#include "connection.h"
#include "watcher.h"

#include <QQmlExtensionPlugin>
#include <qqml.h>

class Plugin : public QQmlExtensionPlugin
{
    Q_OBJECT
    Q_PLUGIN_METADATA(IID QQmlExtensionInterface_iid)

public:
    void registerTypes(const char *uri) override
    {
        qmlRegisterType<DBusServiceWatcher>(uri, 1, 0, "DBusServiceWatcher");
        qmlRegisterUncreatableType<BusType>(uri, 1, 0, "BusType", QStringLiteral("names of buses"));
        // Registered, as asyncCall() returns it.
        qmlRegisterAnonymousType<DBusPendingReply>(uri, 1);
        qmlRegisterSingletonType<DBusConnection>(uri, 1, 0, "SessionBus", [](QQmlEngine *, QJSEngine *) -> QObject * {
            return new DBusConnection(BusType::Session, nullptr);
        });
        qmlRegisterSingletonType<DBusConnection>(uri, 1, 0, "SystemBus", [](QQmlEngine *, QJSEngine *) -> QObject * {
            return new DBusConnection(BusType::System, nullptr);
        });
    }
};

#include "plugin.moc"
