// Whether a name is owned on a bus.

#pragma once

#include "connection.h"

#include <memory>

class QDBusServiceWatcher;

class DBusServiceWatcher : public QObject
{
    Q_OBJECT
    Q_PROPERTY(BusType::Type busType MEMBER m_type NOTIFY watchedChanged)
    Q_PROPERTY(QString watchedService MEMBER m_name NOTIFY watchedChanged)
    Q_PROPERTY(bool registered READ isRegistered NOTIFY registeredChanged)

public:
    explicit DBusServiceWatcher(QObject *parent = nullptr);
    ~DBusServiceWatcher() override;

    bool isRegistered() const;

Q_SIGNALS:
    void watchedChanged();
    void registeredChanged();

private:
    void watch();
    void setRegistered(bool registered);

    BusType::Type m_type = BusType::Session;
    QString m_name;
    bool m_registered = false;
    std::unique_ptr<QDBusServiceWatcher> m_watcher;
};
